package volume

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/ferryos/ferry/internal/fault"
)

// Options are those of Docker's local driver as far as they are honoured: what
// a volume is made of in place of a directory of its own.
type Options struct {
	Bind     string // a directory or file of this machine; "" for none
	ReadOnly bool
	Tmpfs    bool
	Mount    []string // further options of the mount, as for mount(8)
}

// ParseOptions reads type, o and device: type=none,o=bind,device=PATH and type=tmpfs.
func ParseOptions(in map[string]string) (Options, error) {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		switch key {
		case "type", "o", "device":
		default:
			return Options{}, fault.New(fault.Unsupported, "volume option %q is not supported", key).Hint("use type, o and device")
		}
	}
	if len(in) == 0 {
		return Options{}, nil
	}
	var out Options
	bind := false
	for opt := range strings.SplitSeq(in["o"], ",") {
		switch opt {
		case "", "rw":
		case "ro":
			out.ReadOnly = true
		case "bind", "rbind":
			bind = true
		default:
			out.Mount = append(out.Mount, opt)
		}
	}
	kind, device := in["type"], in["device"]
	switch {
	case kind == "tmpfs" && !bind:
		out.Tmpfs = true
		return out, nil
	case device == "":
		return out, fault.New(fault.Invalid, "missing device in volume options")
	case bind && (kind == "" || kind == "none" || kind == "bind"):
	default:
		return out, fault.New(fault.Unsupported, "volumes of type %q are not supported", kind).
			Hint("use type=none with o=bind and device=PATH, or type=tmpfs; mount anything else on this machine and bind that")
	}
	if !path.IsAbs(device) {
		return out, fault.New(fault.Invalid, "volume option device=%s: the path must be absolute", device)
	}
	if len(out.Mount) > 0 {
		return out, fault.New(fault.Unsupported, "volume option o=%s: only bind, rbind, ro and rw are supported for a bind mount", in["o"])
	}
	out.Bind = path.Clean(device)
	return out, nil
}
