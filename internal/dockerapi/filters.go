package dockerapi

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// filters are what the "filters" parameter asks for: for each key the values
// of which one must match (labels: all).
type filters map[string][]string

// parseFilters reads the parameter in its two forms, {"key":{"value":true}}
// and {"key":["value"]}, and refuses keys that are not known.
func parseFilters(r *http.Request, known ...string) (filters, error) {
	raw := param(r, "filters")
	if raw == "" {
		return nil, nil
	}
	f := filters{}
	var sets map[string]map[string]bool
	if json.Unmarshal([]byte(raw), &sets) == nil {
		for key, values := range sets {
			for v, on := range values {
				if on {
					f[key] = append(f[key], v)
				}
			}
		}
	} else if err := json.Unmarshal([]byte(raw), &f); err != nil {
		return nil, fault.New(fault.Invalid, "filters: %w", err)
	}
	for key := range f {
		if !slices.Contains(known, key) {
			return nil, fault.New(fault.Invalid, "filter %q is not supported here", key).
				Hint("use one of %s", strings.Join(known, ", "))
		}
	}
	return f, f.checkValues()
}

// checkValues refuses values that cannot match.
func (f filters) checkValues() error {
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return fault.New(fault.Invalid, "filter status=%s: %w", v, err)
		}
	}
	for _, v := range slices.Concat(f["expose"], f["publish"]) {
		if _, _, _, err := parsePortRange(v); err != nil {
			return err
		}
	}
	for _, v := range f["is-task"] {
		if _, err := strconv.ParseBool(v); err != nil {
			return fault.New(fault.Invalid, "filter is-task=%s: neither true nor false", v)
		}
	}
	for _, v := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return fault.New(fault.Invalid, "filter health=%s: %w", v, err)
		}
	}
	for _, v := range f["exited"] {
		if _, err := strconv.Atoi(v); err != nil {
			return fault.New(fault.Invalid, "filter exited=%s: not a number", v)
		}
	}
	for _, v := range f["until"] {
		if t, err := parseTime(v); err != nil || t.IsZero() {
			return fault.New(fault.Invalid, "filter until=%s: not a time", v).Hint("use seconds since 1970, RFC 3339, or a duration such as 10m")
		}
	}
	for _, v := range f["dangling"] {
		if _, err := strconv.ParseBool(v); err != nil {
			return fault.New(fault.Invalid, "filter dangling=%s: neither true nor false", v)
		}
	}
	return nil
}

// any reports whether key was not given or match holds for one of its values.
func (f filters) any(key string, match func(value string) bool) bool {
	values, given := f[key]
	return !given || slices.ContainsFunc(values, match)
}

func (f filters) labels(have map[string]string) bool {
	for _, want := range f["label"] {
		key, value, withValue := strings.Cut(want, "=")
		if got, ok := have[key]; !ok || withValue && got != value {
			return false
		}
	}
	return true
}

// until reports whether something was created before the times given.
func (f filters) until(created time.Time) bool {
	return !slices.ContainsFunc(f["until"], func(v string) bool {
		t, err := parseTime(v)
		return err != nil || !created.Before(t)
	})
}

// noLabels reports whether have has none of the labels that are to be left out.
func (f filters) noLabels(have map[string]string) bool {
	return !slices.ContainsFunc(f["label!"], func(v string) bool { return filters{"label": {v}}.labels(have) })
}

// container reports whether c is one of those asked for.
func (f filters) container(c engine.Container) bool {
	return f.labels(c.Spec.Labels) && f.noLabels(c.Spec.Labels) && f.until(c.CreatedAt) &&
		f.any("id", func(v string) bool { return strings.HasPrefix(c.ID, v) }) &&
		f.any("name", func(v string) bool { return matches(v, c.Spec.Name) || matches(v, "/"+c.Spec.Name) }) &&
		f.any("volume", func(v string) bool {
			return slices.ContainsFunc(mountPoints(c), func(m container.MountPoint) bool { return m.Name == v || m.Destination == v })
		}) &&
		f.any("status", func(v string) bool { return string(c.State) == v }) &&
		f.any("ancestor", func(v string) bool {
			return c.ImageID == v || c.Spec.Image == v || settingsOf(c).Config.Image == v
		}) &&
		f.any("exited", func(v string) bool {
			return c.State == engine.StateExited && strconv.Itoa(c.ExitCode) == v
		}) &&
		f.any("is-task", func(v string) bool { return v == "false" || v == "0" }) && // none is Swarm's
		f.any("before", func(v string) bool { return age(c) < v }) &&
		f.any("since", func(v string) bool { return age(c) > v })
}

// ports reports whether ports are exposed and published as asked for.
func (f filters) ports(have []container.PortSummary) bool {
	has := func(number func(container.PortSummary) uint16) func(string) bool {
		return func(v string) bool {
			first, last, proto, err := parsePortRange(v)
			return err == nil && slices.ContainsFunc(have, func(p container.PortSummary) bool {
				n := number(p)
				return n != 0 && n >= first && n <= last && p.Type == proto
			})
		}
	}
	return f.any("expose", has(func(p container.PortSummary) uint16 { return p.PrivatePort })) &&
		f.any("publish", has(func(p container.PortSummary) uint16 { return p.PublicPort }))
}

// parsePortRange reads FIRST[-LAST][/PROTOCOL].
func parsePortRange(s string) (first, last uint16, proto string, err error) {
	numbers, proto, found := strings.Cut(s, "/")
	if !found {
		proto = "tcp"
	}
	from, to, found := strings.Cut(numbers, "-")
	if !found {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	if errA != nil || errB != nil || a > b {
		return 0, 0, "", fault.New(fault.Invalid, "%q is no port or range of ports", s).Hint("write 80, 80/udp or 80-90/tcp")
	}
	return uint16(a), uint16(b), proto, nil
}

// health reports whether a container of that health is one of those asked for.
func (f filters) health(h *container.Health) bool {
	status := container.NoHealthcheck
	if h != nil {
		status = h.Status
	}
	return f.any("health", func(v string) bool { return string(status) == v })
}

// matches is Docker's rule for names: a regular expression, found anywhere.
func matches(pattern, name string) bool {
	re, err := regexp.Compile(pattern)
	return pattern == name || err == nil && re.MatchString(name)
}

// parseTime reads a Docker timestamp: seconds since 1970 with a fraction,
// RFC 3339, or a duration back from now. "" and "0" are the zero time.
func parseTime(s string) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "time %q is not understood", s).
			Hint("use seconds since 1970, RFC 3339, or a duration such as 10m")
	}
	var nano uint64
	if fraction != "" {
		if nano, err = strconv.ParseUint((fraction + "000000000")[:9], 10, 64); err != nil {
			return time.Time{}, fault.New(fault.Invalid, "time %q is not understood", s)
		}
	}
	return time.Unix(sec, int64(nano)), nil
}
