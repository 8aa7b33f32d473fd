package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Ages returns MinAge and MaxAge, which is 0 for never.
func (i Images) Ages() (minAge, maxAge time.Duration) {
	minAge, _ = time.ParseDuration(i.MinAge) // validated
	if i.MaxAge != "" {
		maxAge, _ = time.ParseDuration(i.MaxAge)
	}
	return minAge, maxAge
}

func (i Images) validate() error {
	var errs []error
	if i.HighPercent < 1 || i.HighPercent > 100 || i.LowPercent < 1 || i.LowPercent > i.HighPercent {
		errs = append(errs, fmt.Errorf("images.highPercent, images.lowPercent: %d and %d must be between 1 and 100, the second not above the first", i.HighPercent, i.LowPercent))
	}
	for _, age := range []struct{ field, value string }{{"images.minAge", i.MinAge}, {"images.maxAge", i.MaxAge}} {
		if age.value == "" && age.field == "images.maxAge" {
			continue
		}
		if d, err := time.ParseDuration(age.value); err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("%s: %q is no duration such as 2h", age.field, age.value))
		}
	}
	for _, p := range []struct{ field, path string }{{"images.dockerConfig", i.DockerConfig}, {"images.hostsDir", i.HostsDir}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q must be an absolute path", p.field, p.path))
		}
	}
	return errors.Join(errs...)
}

func validateRegistries(list []RegistryHost) error {
	var errs []error
	seen := map[string]bool{}
	for i, r := range list {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("registries[%d]"+format, append([]any{i}, args...)...))
		}
		if r.Host == "" || strings.ContainsAny(r.Host, "/@ ") {
			bad(".host: %q must be a host or host:port", r.Host)
		}
		if seen[r.Host] {
			bad(".host: %s is there twice", r.Host)
		}
		seen[r.Host] = true
		for _, m := range r.Mirrors {
			u, err := url.Parse(m)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
				bad(".mirrors: %q must be http://host[:port][/path] or https://host[:port][/path]", m)
			}
		}
		if (r.ClientCert == "") != (r.ClientKey == "") {
			bad(": clientCert and clientKey belong together")
		}
		if r.PlainHTTP && (r.CA != "" || r.ClientCert != "" || r.SkipVerify) {
			bad(": plainHTTP has no use for certificates")
		}
		for _, file := range []string{r.CA, r.ClientCert, r.ClientKey} {
			if file != "" && !filepath.IsAbs(file) {
				bad(": %q must be an absolute path", file)
			}
		}
	}
	return errors.Join(errs...)
}
