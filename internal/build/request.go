package build

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/moby/api/types/registry"

	"github.com/ferryos/ferry/internal/fault"
)

// sessionContext is the remote of a build whose context is in the client's session.
const sessionContext = "client-session"

// request is what POST /build asks for.
type request struct {
	id         string   // to cancel it by
	key        string   // of all that the client gives; see pastBuilds
	session    string   // of the client, with context, secrets and credentials
	remote     string   // where the context is; "" is the request's body
	dockerfile string   // path in the context
	tags       []string // full names
	quiet      bool
	traces     bool // answer with BuildKit's own messages in place of text
	attrs      map[string]string
	cache      controlapi.CacheOptions
	export     *controlapi.Exporter // nil keeps the result in the build cache alone
	allowed    []string             // entitlements
	auths      map[string]registry.AuthConfig
}

// parseRequest reads the query of POST /build and its header with credentials.
// What is not known is not looked at, as the API has it; what is known and
// cannot be done is refused.
func parseRequest(q url.Values, header http.Header, gateway string) (*request, error) {
	r := &request{id: q.Get("buildid"), session: q.Get("session"), remote: q.Get("remote"), quiet: isTrue(q.Get("q")), attrs: map[string]string{}}
	p := requestParser{q: q, r: r, gateway: gateway}
	p.refuse()
	p.source()
	p.settings()
	p.limits()
	p.output()
	if p.err == nil {
		r.auths, p.err = registryConfig(header)
	}
	return r, p.err
}

// requestParser notes the first error.
type requestParser struct {
	q       url.Values
	r       *request
	gateway string // this machine's address in a step's network
	err     error
}

func (p *requestParser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// json reads a parameter that is JSON; "" and null leave v as it is.
func (p *requestParser) json(name string, v any) {
	if text := p.q.Get(name); text != "" {
		if err := json.Unmarshal([]byte(text), v); err != nil {
			p.fail(fault.New(fault.Invalid, "build: %s: %w", name, err))
		}
	}
}

// set takes a parameter over as an attribute of the frontend.
func (p *requestParser) set(attr, value string) {
	if value != "" {
		p.r.attrs[attr] = value
	}
}

// refuse says what of the API BuildKit cannot do.
func (p *requestParser) refuse() {
	q := p.q
	switch {
	case q.Get("version") != "" && q.Get("version") != "1" && q.Get("version") != "2":
		p.fail(fault.New(fault.Invalid, "build: invalid builder version %q", q.Get("version")).Hint("1 answers with text, 2 with BuildKit's messages"))
	case isTrue(q.Get("squash")):
		p.fail(fault.New(fault.Unsupported, "build: squash is not supported").Hint("write the image in stages, and copy what is needed to the last"))
	case len(q["securityopt"]) > 0 && q.Get("securityopt") != "null" && q.Get("securityopt") != "[]":
		p.fail(fault.New(fault.Unsupported, "build: security options are not supported"))
	case q.Get("isolation") != "" && q.Get("isolation") != "default":
		p.fail(fault.New(fault.Unsupported, "build: isolation %q is not supported on Linux", q.Get("isolation")))
	}
	p.r.traces = q.Get("version") == "2"
}

// source reads where the Dockerfile and the context are.
func (p *requestParser) source() {
	name := p.q.Get("dockerfile")
	if name == "" {
		name = "Dockerfile"
	}
	if slices.Contains(strings.Split(name, "/"), "..") && !strings.HasPrefix(path.Join("/context", name), "/context/") || strings.ContainsAny(name, "\x00\n") {
		p.fail(fault.New(fault.Invalid, "forbidden path outside the build context: %s", name))
		return
	}
	p.r.dockerfile = path.Clean("/" + name)[1:]
	if p.r.dockerfile == "" {
		p.fail(fault.New(fault.Invalid, "the Dockerfile %q is the build context itself", name).Hint("name a file in it"))
		return
	}
	p.r.attrs["filename"] = p.r.dockerfile
	switch remote := p.r.remote; {
	case remote == sessionContext && p.r.session == "":
		p.fail(fault.New(fault.Invalid, "build: remote %s without a session", remote))
	case remote == "" || remote == sessionContext:
	case strings.HasPrefix(remote, "http://"), strings.HasPrefix(remote, "https://"), strings.HasPrefix(remote, "git://"),
		strings.HasPrefix(remote, "git@"), strings.HasPrefix(remote, "github.com/"):
		p.r.attrs["context"] = remote
	default:
		p.fail(fault.New(fault.Invalid, "build: unable to prepare the context: remote %q is not supported", remote).
			Hint("use a URL of a git repository or of an archive, beginning with http://, https:// or git://"))
	}
}

// settings reads what a build is told.
func (p *requestParser) settings() {
	var args map[string]*string
	p.json("buildargs", &args)
	for k, v := range args {
		if v != nil { // an argument without value is taken from the daemon's environment: there is none
			p.r.attrs["build-arg:"+k] = *v
		}
	}
	if v := args["BUILDKIT_INLINE_CACHE"]; v != nil && isTrue(*v) {
		p.r.cache.Exports = append(p.r.cache.Exports, &controlapi.CacheOptionsEntry{Type: "inline"})
	}
	var labels map[string]string
	p.json("labels", &labels)
	for k, v := range labels {
		p.r.attrs["label:"+k] = v
	}
	var from []string
	p.json("cachefrom", &from)
	for _, ref := range from {
		p.r.cache.Imports = append(p.r.cache.Imports, &controlapi.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	p.set("target", p.q.Get("target"))
	p.r.attrs["image-resolve-mode"] = "local"
	if isTrue(p.q.Get("pull")) {
		p.r.attrs["image-resolve-mode"] = "pull"
	}
	if isTrue(p.q.Get("nocache")) {
		p.r.attrs["no-cache"] = ""
	}
	if text := p.q.Get("platform"); text != "" {
		platform, err := platforms.Parse(text)
		if err != nil {
			p.fail(fault.New(fault.Invalid, "build: platform %q: %w", text, err))
			return
		}
		p.r.attrs["platform"] = platforms.Format(platform)
	}
	p.hosts()
	switch mode := p.q.Get("networkmode"); mode {
	case "", "default", "bridge":
	case "none":
		p.r.attrs["force-network-mode"] = mode
	case "host":
		p.r.attrs["force-network-mode"] = mode
		p.r.allowed = append(p.r.allowed, string(entitlements.EntitlementNetworkHost))
	default:
		p.fail(fault.New(fault.Unsupported, "build: network mode %q is not supported", mode).Hint("use default, none or host"))
	}
}

// hosts reads the names that the steps are to know.
func (p *requestParser) hosts() {
	var hosts []string
	for _, host := range p.q["extrahosts"] {
		name, address, _ := strings.Cut(host, ":")
		if address == "host-gateway" {
			address = p.gateway
		}
		ip, err := netip.ParseAddr(strings.Trim(address, "[]"))
		if err != nil || name == "" || strings.ContainsAny(name, "=,\" \n") {
			p.fail(fault.New(fault.Invalid, "build: invalid extra host %q", host).Hint("write it as NAME:ADDRESS"))
			return
		}
		hosts = append(hosts, name+"="+ip.String())
	}
	p.set("add-hosts", strings.Join(hosts, ","))
}

// limits reads what the steps may use.
func (p *requestParser) limits() {
	for param, attr := range map[string]string{"memory": "memory", "memswap": "memswap", "cpushares": "cpushares", "cpuperiod": "cpuperiod",
		"cpuquota": "cpuquota", "shmsize": "shm-size"} {
		text := p.q.Get(param)
		if text == "" || text == "0" {
			continue
		}
		if n, err := strconv.ParseInt(text, 10, 64); err != nil || n < 0 && param != "memswap" && param != "cpuquota" {
			p.fail(fault.New(fault.Invalid, "build: %s=%q is not a number that is meant there", param, text))
			continue
		}
		p.r.attrs[attr] = text
	}
	p.set("cpusetcpus", p.q.Get("cpusetcpus"))
	p.set("cpusetmems", p.q.Get("cpusetmems"))
	if parent := p.q.Get("cgroupparent"); parent != "" {
		p.fail(fault.New(fault.Unsupported, "build: the cgroup's parent cannot be chosen (cgroupparent=%s)", parent))
	}
	var ulimits []struct {
		Name       string
		Hard, Soft int64
	}
	p.json("ulimits", &ulimits)
	var out []string
	for _, u := range ulimits {
		if u.Name == "" || strings.ContainsAny(u.Name, "=:,\"\n") {
			p.fail(fault.New(fault.Invalid, "build: ulimit %q", u.Name))
		}
		out = append(out, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	p.set("ulimit", strings.Join(out, ","))
}

// output reads what becomes of the result: an image in the store unless the
// client's session takes it.
func (p *requestParser) output() {
	tags, err := fullTags(p.q["t"])
	if err != nil {
		p.fail(err)
		return
	}
	p.r.tags = tags
	var outputs []struct {
		Type  string
		Attrs map[string]string
	}
	p.json("outputs", &outputs)
	switch {
	case len(outputs) == 0:
		p.r.export = &controlapi.Exporter{Type: mobyExporter, Attrs: map[string]string{"name": strings.Join(p.r.tags, ",")}}
	case len(outputs) > 1:
		p.fail(fault.New(fault.Invalid, "build: multiple outputs not supported"))
	case p.r.session == "" && outputs[0].Type != mobyExporter && outputs[0].Type != "cacheonly" && outputs[0].Type != client.ExporterImage:
		p.fail(fault.New(fault.Invalid, "build: output of type %q goes to the client's session, and there is none", outputs[0].Type))
	case outputs[0].Type != "cacheonly":
		attrs := maps.Clone(outputs[0].Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		if attrs["name"] == "" {
			attrs["name"] = strings.Join(p.r.tags, ",")
		}
		p.r.export = &controlapi.Exporter{Type: outputs[0].Type, Attrs: attrs}
	}
}

// fullTags are names that a client gives an image, as the store has them, each
// once.
func fullTags(tags []string) (full []string, _ error) {
	for _, tag := range tags {
		if tag == "" {
			continue
		}
		ref, err := reference.ParseNormalizedNamed(tag)
		if err == nil {
			if _, digested := ref.(reference.Digested); digested {
				err = fmt.Errorf("refusing to create a tag with a digest reference")
			}
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "build: tag %q: %w", tag, err).Hint("names look like registry:port/path/name:tag, in lower case")
		}
		if name := reference.TagNameOnly(ref).String(); !slices.Contains(full, name) {
			full = append(full, name)
		}
	}
	return full, nil
}

// registryConfig reads X-Registry-Config: what the client knows of registries, by host.
func registryConfig(header http.Header) (map[string]registry.AuthConfig, error) {
	text := header.Get("X-Registry-Config")
	if text == "" {
		return nil, nil
	}
	data, err := base64.URLEncoding.DecodeString(text)
	if err != nil {
		if data, err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, fault.New(fault.Invalid, "X-Registry-Config: %w", err)
		}
	}
	var auths map[string]registry.AuthConfig
	if err := json.Unmarshal(data, &auths); err != nil {
		return nil, fault.New(fault.Invalid, "X-Registry-Config: %w", err)
	}
	return auths, nil
}

// isTrue reads a boolean parameter as Docker does.
func isTrue(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}
