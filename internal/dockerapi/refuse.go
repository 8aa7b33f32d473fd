package dockerapi

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/fault"
)

func unsupported(format string, args ...any) error {
	return fault.New(fault.Unsupported, format+" is not supported yet", args...)
}

// honoured are the fields of HostConfig and its Resources that makePlan acts
// on, or that mean nothing here: the client's own bookkeeping.
var honoured = []string{
	"Binds", "ContainerIDFile", "LogConfig", "NetworkMode", "PortBindings", "AutoRemove", "ConsoleSize", "Annotations",
	"CapAdd", "CapDrop", "DNS", "DNSOptions", "DNSSearch", "ExtraHosts", "GroupAdd", "IpcMode", "Links", "OomScoreAdj", "PidMode",
	"Privileged", "PublishAllPorts", "ReadonlyRootfs", "SecurityOpt", "Tmpfs", "ShmSize", "Sysctls", "Mounts",
	"MaskedPaths", "ReadonlyPaths", "VolumesFrom",
	"CPUShares", "Memory", "NanoCPUs", "CgroupParent", "CPUPeriod", "CPUQuota", "CpusetCpus", "CpusetMems", "Devices",
	"MemorySwap", "PidsLimit", "Ulimits",
	"RestartPolicy", "MemoryReservation", "MemorySwappiness", "OomKillDisable", "BlkioWeight", "BlkioWeightDevice",
	"CgroupnsMode", "UTSMode", "Runtime", "Init", "DeviceCgroupRules", "DeviceRequests", "BlkioDeviceReadBps", "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps",
}

// noOps are values other than the zero one that ask for nothing.
var noOps = map[string]func(h container.HostConfig) bool{
	"VolumeDriver": func(h container.HostConfig) bool { return h.VolumeDriver == "local" },
	"UsernsMode":   func(h container.HostConfig) bool { return h.UsernsMode.IsHost() || ownUsers(h.UsernsMode) },
	"Isolation":    func(h container.HostConfig) bool { return h.Isolation.IsDefault() },
}

// flags are the docker command's names of settings that people try.
var flags = map[string]string{
	"StorageOpt": "--storage-opt", "VolumeDriver": "--volume-driver",
}

// refuse returns an error that names the settings of req which cannot be
// honoured. It looks at every field there is, so that one added to the API is
// refused until somebody decides about it.
func refuse(req container.CreateRequest) error {
	var names []string
	names = unknownFields(reflect.ValueOf(*req.HostConfig), *req.HostConfig, names)
	return refusal(names)
}

// refusal is the error that names settings which cannot be honoured; nil for none.
func refusal(names []string) error {
	if len(names) == 0 {
		return nil
	}
	for i, name := range names {
		if f := flags[name]; f != "" {
			names[i] = f + " (" + name + ")"
		}
	}
	slices.Sort(names)
	return fault.New(fault.Unsupported, "not supported yet: %s", strings.Join(names, ", ")).Hint("leave it out")
}

// parseCreate decodes the body of a create request and refuses settings that
// the API's types do not have: decoding would drop them.
func parseCreate(body []byte) (container.CreateRequest, error) {
	var req container.CreateRequest
	if len(body) == 0 {
		return req, nil
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return req, fault.New(fault.Invalid, "request body: %w", err)
	}
	var top map[string]any
	if err := json.Unmarshal(body, &top); err != nil {
		return req, fault.New(fault.Invalid, "request body: %w", err)
	}
	names := unknownKeys(top, reflect.TypeFor[container.CreateRequest](), nil)
	for key, value := range top {
		if host, ok := value.(map[string]any); ok && strings.EqualFold(key, "HostConfig") {
			names = unknownKeys(host, reflect.TypeFor[container.HostConfig](), names)
		}
	}
	return req, refusal(names)
}

// unknownKeys adds the keys of a JSON object that t has no field for and whose
// values ask for something.
func unknownKeys(object map[string]any, t reflect.Type, names []string) []string {
	for key, value := range object {
		known := slices.ContainsFunc(reflect.VisibleFields(t), func(f reflect.StructField) bool {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			return strings.EqualFold(key, cmp.Or(name, f.Name))
		})
		if !known && value != nil && !empty(reflect.ValueOf(value)) {
			names = append(names, key)
		}
	}
	return names
}

func unknownFields(v reflect.Value, h container.HostConfig, names []string) []string {
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		switch {
		case field.Anonymous:
			names = unknownFields(value, h, names)
		case slices.Contains(honoured, field.Name), empty(value):
		case noOps[field.Name] != nil && noOps[field.Name](h):
		default:
			names = append(names, field.Name)
		}
	}
	return names
}

// empty reports whether a value is zero or a list or map of nothing.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}

// emptyEndpoint reports whether a network's settings ask for nothing.
func emptyEndpoint(e apinetwork.EndpointSettings) bool {
	v := reflect.ValueOf(e)
	for i := range v.NumField() {
		if !empty(v.Field(i)) {
			return false
		}
	}
	return true
}
