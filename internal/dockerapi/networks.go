package dockerapi

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/dockerapi/netconf"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) allNetworks() []apinetwork.Network {
	list := netconf.Builtins(s.opt.Engine.Network().Own())
	for _, d := range s.opt.Engine.Network().Definitions() {
		list = append(list, netconf.Network(d))
	}
	return list
}

// findNetwork returns the network of that name or ID, or whose ID alone begins so.
func (s *Server) findNetwork(key string) (apinetwork.Network, error) {
	if key == apinetwork.NetworkDefault {
		key = apinetwork.NetworkBridge
	}
	var begins []apinetwork.Network
	for _, n := range s.allNetworks() {
		if n.Name == key || n.ID == key {
			return n, nil
		}
		if key != "" && strings.HasPrefix(n.ID, key) {
			begins = append(begins, n)
		}
	}
	switch len(begins) {
	case 1:
		return begins[0], nil
	case 0:
		return apinetwork.Network{}, fault.New(fault.NotFound, "network %s not found", key).Hint("`ferry network ls` lists the networks, `ferry network create` makes one")
	}
	return apinetwork.Network{}, fault.New(fault.Invalid, "network %s is ambiguous (%d matches found on ID prefix)", key, len(begins)).Hint("give more of the ID")
}

func (s *Server) networkList(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "name", "id", "driver", "label", "type", "scope", "dangling")
	if err != nil {
		return err
	}
	for _, v := range match["type"] {
		if v != "custom" && v != "builtin" {
			return fault.New(fault.Invalid, "invalid filter: 'type'='%s'", v)
		}
	}
	out := []apinetwork.Summary{}
	for _, n := range s.allNetworks() {
		if match.network(n, s.isUsed(r.Context(), n)) {
			out = append(out, apinetwork.Summary{Network: n})
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// network reports whether n, which is used or not, is one of those asked for.
func (f filters) network(n apinetwork.Network, used bool) bool {
	return f.labels(n.Labels) &&
		f.any("name", func(v string) bool { return matches(v, n.Name) }) &&
		f.any("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
		f.any("driver", func(v string) bool { return n.Driver == v }) &&
		f.any("scope", func(v string) bool { return n.Scope == v }) &&
		f.any("type", func(v string) bool { return (v == "builtin") == netconf.IsBuiltin(n) }) &&
		f.any("dangling", func(v string) bool {
			dangling, _ := strconv.ParseBool(v) // it was checked
			return dangling == !(used || netconf.IsBuiltin(n))
		})
}

// isUsed reports whether a container that runs is on the network.
func (s *Server) isUsed(ctx context.Context, n apinetwork.Network) bool {
	return len(s.containersOn(ctx, n)) > 0
}

// containersOn returns the endpoints of the containers that are on a network now.
func (s *Server) containersOn(ctx context.Context, n apinetwork.Network) map[string]apinetwork.EndpointResource {
	out := map[string]apinetwork.EndpointResource{}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		pod, err := s.opt.Engine.Pod(ctx, c.PodID)
		if err != nil || pod.State != engine.PodReady || !alive(c) {
			continue
		}
		if n.Driver != netconf.BridgeDriver {
			if networkMode(pod) == n.Name {
				out[c.ID] = apinetwork.EndpointResource{Name: c.Spec.Name, EndpointID: pod.ID}
			}
			continue
		}
		for _, e := range pod.Endpoints {
			if e.Network == netconf.EngineID(n) {
				out[c.ID] = apinetwork.EndpointResource{Name: c.Spec.Name, EndpointID: e.ID, MacAddress: hardwareAddr(e.HardwareAddr), IPv4Address: e.Address}
			}
		}
	}
	return out
}

func (s *Server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(r.PathValue("id"))
	if err != nil {
		return err
	}
	if scope := param(r, "scope"); scope != "" && scope != n.Scope {
		return fault.New(fault.NotFound, "network %s not found in scope %s", n.Name, scope)
	}
	return writeJSON(w, http.StatusOK, apinetwork.Inspect{Network: n, Containers: s.containersOn(r.Context(), n)})
}

func (s *Server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	var req apinetwork.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	d, err := netconf.Definition(req)
	if err != nil {
		return err
	}
	if slices.Contains([]string{apinetwork.NetworkBridge, apinetwork.NetworkHost, apinetwork.NetworkNone, apinetwork.NetworkDefault}, d.Name) {
		return fault.New(fault.Denied, "operation is not permitted on predefined %s network", d.Name)
	}
	if d, err = s.opt.Engine.Network().CreateNetwork(r.Context(), d); err != nil {
		return err
	}
	s.publishNetwork(events.ActionCreate, netconf.Network(d), "")
	return writeJSON(w, http.StatusCreated, apinetwork.CreateResponse{ID: d.ID})
}

func (s *Server) networkRemove(w http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(r.PathValue("id"))
	if err != nil {
		return err
	}
	if netconf.IsBuiltin(n) {
		return fault.New(fault.Denied, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if err := s.removeNetwork(r.Context(), n); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) removeNetwork(ctx context.Context, n apinetwork.Network) error {
	err := s.opt.Engine.Network().RemoveNetwork(context.WithoutCancel(ctx), n.ID)
	if fault.Is(err, fault.Conflict) { // Docker's status
		err = fault.New(fault.Denied, "error while removing network: %w", err).Hint("%s", fault.HintOf(err))
	}
	if err == nil {
		s.publishNetwork(events.ActionDestroy, n, "")
	}
	return err
}

func (s *Server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "label", "until")
	if err != nil {
		return err
	}
	before := time.Now()
	for _, v := range match["until"] {
		if before, err = parseTime(v); err != nil {
			return err
		}
	}
	report := apinetwork.PruneReport{NetworksDeleted: []string{}}
	for _, d := range s.opt.Engine.Network().Definitions() {
		n := netconf.Network(d)
		if !match.labels(n.Labels) || n.Created.After(before) {
			continue
		}
		err := s.removeNetwork(r.Context(), n)
		if fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) {
			continue // in use, or removed meanwhile
		}
		if err != nil {
			return err
		}
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	s.publish(events.NetworkEventType, events.ActionPrune, "", map[string]string{"reclaimed": "0"})
	return writeJSON(w, http.StatusOK, report)
}

func (s *Server) networkConnect(w http.ResponseWriter, r *http.Request) error {
	var req apinetwork.ConnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	n, c, pod, err := s.endpointOf(r, req.Container)
	if err != nil {
		return err
	}
	settings := cmp.Or(req.EndpointConfig, &apinetwork.EndpointSettings{})
	spec, err := s.endpointSpec(r.Context(), n, settings, c.Spec.Name, pod.Spec.Hostname)
	if err != nil {
		return err
	}
	err = s.opt.Engine.Connect(context.WithoutCancel(r.Context()), c.PodID, spec)
	if fault.Is(err, fault.Conflict) && slices.ContainsFunc(pod.Spec.OnNetworks(), func(e network.EndpointSpec) bool { return e.Network == spec.Network }) {
		return fault.New(fault.Denied, "endpoint with name %s already exists in network %s", c.Spec.Name, n.Name)
	}
	if err != nil {
		return err
	}
	if pod.State == engine.PodReady {
		s.publishNetwork(events.ActionConnect, n, c.ID)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	var req apinetwork.DisconnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	n, c, pod, err := s.endpointOf(r, req.Container)
	if err != nil {
		return err
	}
	err = s.opt.Engine.Disconnect(context.WithoutCancel(r.Context()), c.PodID, netconf.EngineID(n))
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Denied, "container %s is not connected to network %s", c.ID, n.Name)
	}
	if err != nil {
		return err
	}
	if pod.State == engine.PodReady {
		s.publishNetwork(events.ActionDisconnect, n, c.ID)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// endpointOf finds the network of the path and the container that is to come to
// it or leave it, if both may.
func (s *Server) endpointOf(r *http.Request, name string) (n apinetwork.Network, c engine.Container, pod engine.Pod, err error) {
	if n, err = s.findNetwork(r.PathValue("id")); err != nil {
		return n, c, pod, err
	}
	if c, err = s.find(r.Context(), name); err != nil {
		return n, c, pod, err
	}
	if pod, err = s.opt.Engine.Pod(r.Context(), c.PodID); err != nil {
		return n, c, pod, err
	}
	switch {
	case pod.Spec.Network == engine.ModeHost || n.Driver == netconf.HostDriver:
		err = fault.New(fault.Denied, "container cannot be disconnected from host network or connected to host network")
	case pod.Spec.Network == engine.ModeContainer:
		err = fault.New(fault.Denied, "container sharing network namespace with another container or host cannot be connected to any other network")
	case pod.Spec.Network == engine.ModeNone || n.Driver == netconf.NullDriver:
		err = fault.New(fault.Denied, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	return n, c, pod, err
}

// publishNetwork tells what happened to a network, or to a container on it.
func (s *Server) publishNetwork(action events.Action, n apinetwork.Network, containerID string) {
	s.publishNetworkAt(time.Now(), action, n, containerID)
}

func (s *Server) publishNetworkAt(at time.Time, action events.Action, n apinetwork.Network, containerID string) {
	attributes := map[string]string{"name": n.Name, "type": n.Driver}
	if containerID != "" {
		attributes["container"] = containerID
	}
	s.publishAt(at, events.NetworkEventType, action, n.ID, attributes)
}

// publishEndpoints tells that a container came to its networks, or left them.
func (s *Server) publishEndpoints(ev engine.Event) {
	action := events.ActionConnect
	if ev.Type == engine.EventPodDown {
		action = events.ActionDisconnect
	}
	for _, e := range ev.Pod.Endpoints {
		n := apinetwork.Network{Name: e.NetworkName, ID: e.Network, Driver: netconf.BridgeDriver}
		if e.Network == network.DefaultNetwork {
			n.ID = netconf.BuiltinID(n.Name)
		}
		s.publishNetworkAt(ev.Time, action, n, ev.Pod.ID)
	}
}

// networkMode is the name of the network of a pod that has none of its own.
func networkMode(pod engine.Pod) string {
	switch pod.Spec.Network {
	case engine.ModeHost:
		return apinetwork.NetworkHost
	case engine.ModeNone:
		return apinetwork.NetworkNone
	}
	return ""
}

func hardwareAddr(s string) apinetwork.HardwareAddr {
	var mac apinetwork.HardwareAddr
	if mac.UnmarshalText([]byte(s)) != nil {
		return nil // there is none
	}
	return mac
}

// endpoints are a container's places on networks, by their names.
func (s *Server) endpoints(pod engine.Pod) map[string]*apinetwork.EndpointSettings {
	out := map[string]*apinetwork.EndpointSettings{}
	if name := networkMode(pod); name != "" {
		out[name] = &apinetwork.EndpointSettings{}
		if pod.State == engine.PodReady {
			out[name].NetworkID, out[name].EndpointID = netconf.BuiltinID(name), pod.ID
		}
		return out
	}
	for _, spec := range pod.Spec.OnNetworks() {
		e := &apinetwork.EndpointSettings{Aliases: spec.Aliases, GwPriority: spec.GatewayPriority, MacAddress: hardwareAddr(spec.MAC), NetworkID: spec.Network}
		name := apinetwork.NetworkBridge
		if spec.Network == network.DefaultNetwork {
			e.NetworkID = netconf.BuiltinID(name)
		} else if n, err := s.findNetwork(spec.Network); err == nil {
			name = n.Name
			e.DNSNames = slices.Concat(spec.Names, spec.Aliases, []string{pod.ID[:12]})
		} else {
			name = spec.Network // removed since
		}
		if spec.IP.IsValid() {
			e.IPAMConfig = &apinetwork.EndpointIPAMConfig{IPv4Address: spec.IP}
		}
		for alias, target := range spec.Links {
			e.Links = append(e.Links, target+":"+alias)
		}
		slices.Sort(e.Links)
		if pod.State == engine.PodReady {
			fillEndpoint(e, pod, spec.Network)
		}
		out[name] = e
	}
	return out
}

// fillEndpoint adds what the network gave the container.
func fillEndpoint(e *apinetwork.EndpointSettings, pod engine.Pod, id string) {
	for _, have := range pod.Endpoints {
		if have.Network == id {
			e.EndpointID, e.IPAddress, e.IPPrefixLen = have.ID, have.Address.Addr(), have.Address.Bits()
			e.Gateway, e.MacAddress = have.Gateway, hardwareAddr(have.HardwareAddr)
		}
	}
}

// networkRequest is a network that a create request names, and how.
type networkRequest struct {
	key      string
	settings *apinetwork.EndpointSettings
}

// networks notes on which networks a container is to be. Which those are, and
// whose network a container shares, findNetworks looks up.
func (p *plan) networks(mode container.NetworkMode, config *apinetwork.NetworkingConfig, h container.HostConfig) error {
	given := map[string]*apinetwork.EndpointSettings{}
	if config != nil {
		given = maps.Clone(config.EndpointsConfig)
	}
	own := cmp.Or(string(mode), apinetwork.NetworkBridge)
	if own == apinetwork.NetworkDefault {
		own = apinetwork.NetworkBridge
	}
	if e, ok := given[apinetwork.NetworkDefault]; ok && own == apinetwork.NetworkBridge {
		delete(given, apinetwork.NetworkDefault)
		given[own] = e
	}
	if p.pod.Network != engine.ModePod {
		for name, e := range given {
			if name != own || e != nil && !emptyEndpoint(*e) {
				return fault.New(fault.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes: %s and %s", own, name)
			}
		}
		if len(h.Links) > 0 {
			return fault.New(fault.Invalid, "conflicting options: %s type networking can't be used with links", own)
		}
		return p.shared(mode, h)
	}
	p.links = h.Links
	p.on = []networkRequest{{own, cmp.Or(given[own], &apinetwork.EndpointSettings{})}}
	delete(given, own)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		p.on = append(p.on, networkRequest{name, cmp.Or(given[name], &apinetwork.EndpointSettings{})})
	}
	return nil
}

// shared refuses what a container that shares another's network cannot have.
func (p *plan) shared(mode container.NetworkMode, h container.HostConfig) error {
	if p.pod.Network != engine.ModeContainer {
		return nil
	}
	conflict := ""
	switch {
	case p.settings.Config.Hostname != "":
		conflict = "hostname"
	case len(h.DNS)+len(h.DNSSearch)+len(h.DNSOptions) > 0:
		conflict = "dns"
	case len(h.ExtraHosts) > 0:
		conflict = "custom host-to-IP mapping"
	case len(h.PortBindings) > 0, h.PublishAllPorts:
		conflict = "port publishing"
	}
	if conflict != "" {
		return fault.New(fault.Invalid, "conflicting options: %s and the network mode %s", conflict, mode)
	}
	p.pod.NetworkOf = mode.ConnectedContainer()
	return nil
}

// findNetworks looks up the networks and containers that the request names. One
// that is missing is not told as such: the docker command takes that for a
// missing image and pulls it.
func (s *Server) findNetworks(ctx context.Context, p *plan) error {
	err := s.lookUpNetworks(ctx, p)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Invalid, "%w", err)
	}
	return err
}

func (s *Server) lookUpNetworks(ctx context.Context, p *plan) error {
	if p.pod.Network == engine.ModeContainer {
		other, err := s.find(ctx, p.pod.NetworkOf)
		if err != nil {
			return err
		}
		pod, err := s.opt.Engine.Pod(ctx, other.PodID)
		if err != nil {
			return err
		}
		p.pod.NetworkOf, p.pod.Hostname = other.ID, cmp.Or(pod.Spec.Hostname, pod.ID[:12])
		return nil
	}
	for i, req := range p.on {
		n, err := s.findNetwork(req.key)
		if err != nil {
			return err
		}
		if n.Driver != netconf.BridgeDriver {
			return fault.New(fault.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes: %s and %s", p.on[0].key, n.Name)
		}
		if i == 0 && !netconf.IsBuiltin(n) {
			links := *req.settings
			links.Links = slices.Compact(slices.Sorted(slices.Values(slices.Concat(links.Links, p.links))))
			req.settings = &links
		}
		spec, err := s.endpointSpec(ctx, n, req.settings, p.container.Name, p.settings.Config.Hostname)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(p.pod.Networks, func(e network.EndpointSpec) bool { return e.Network == spec.Network }) {
			return fault.New(fault.Invalid, "the network %s is named twice", n.Name)
		}
		p.pod.Networks = append(p.pod.Networks, spec)
		if i == 0 && netconf.IsBuiltin(n) {
			if err := s.hostsLinks(ctx, p); err != nil {
				return err
			}
		}
	}
	if len(p.on) == 1 && isPlain(p.pod.Networks[0]) {
		p.pod.Networks = nil // what the node has ready
	}
	return nil
}

// isPlain reports whether nothing but the node's own network is asked for.
func isPlain(e network.EndpointSpec) bool {
	return e.Network == network.DefaultNetwork && e.MAC == "" && e.GatewayPriority == 0
}

// endpointSpec translates the settings of a container's place on a network.
// What only tells how it was, when a client copies an inspection, is not looked at.
func (s *Server) endpointSpec(ctx context.Context, n apinetwork.Network, e *apinetwork.EndpointSettings, name, hostname string) (network.EndpointSpec, error) {
	spec := network.EndpointSpec{Network: netconf.EngineID(n), GatewayPriority: e.GwPriority}
	if len(e.MacAddress) > 0 {
		spec.MAC = e.MacAddress.String()
	}
	if len(e.DriverOpts) > 0 {
		return spec, unsupported("driver-opt of a network's endpoint")
	}
	if c := e.IPAMConfig; c != nil {
		if c.IPv6Address.IsValid() || len(c.LinkLocalIPs) > 0 {
			return spec, unsupported("--ip6 and --link-local-ip: networks have IPv4 and that alone; an address of IPv6")
		}
		spec.IP = c.IPv4Address
	}
	if netconf.IsBuiltin(n) {
		if len(e.Aliases) > 0 {
			return spec, fault.New(fault.Invalid, "network-scoped alias is supported only for containers in user defined networks")
		}
		return spec, s.opt.Engine.Network().CheckEndpoint(spec)
	}
	spec.Names, spec.Aliases = []string{name}, e.Aliases
	if hostname != "" && hostname != name {
		spec.Names = append(spec.Names, hostname)
	}
	for _, link := range e.Links {
		target, alias, err := s.parseLink(ctx, link)
		if err != nil {
			return spec, err
		}
		if spec.Links == nil {
			spec.Links = map[string]string{}
		}
		spec.Links[strings.ToLower(alias)] = target.Spec.Name
	}
	return spec, s.opt.Engine.Network().CheckEndpoint(spec)
}

// parseLink reads CONTAINER[:ALIAS].
func (s *Server) parseLink(ctx context.Context, link string) (engine.Container, string, error) {
	key, alias, _ := strings.Cut(link, ":")
	alias = cmp.Or(strings.TrimPrefix(alias, "/"), strings.TrimPrefix(key, "/"))
	if key == "" || strings.ContainsAny(alias, ":/ \t\n") {
		return engine.Container{}, "", fault.New(fault.Invalid, "bad format for links: %s", link).Hint("write CONTAINER[:ALIAS]")
	}
	c, err := s.find(ctx, key)
	if err != nil {
		return c, "", fault.New(fault.Invalid, "could not get container for %s: %w", key, err)
	}
	return c, alias, nil
}

// hostsLinks has /etc/hosts name the containers that are linked to on the node's
// own network, which has no other names.
func (s *Server) hostsLinks(ctx context.Context, p *plan) error {
	for _, link := range p.links {
		c, alias, err := s.parseLink(ctx, link)
		if err != nil {
			return err
		}
		names := []string{alias, c.ID[:12], c.Spec.Name}
		p.pod.Links = append(p.pod.Links, engine.Link{Container: c.ID, Names: slices.Compact(names)})
	}
	return nil
}

// gatewayFor is the address of this machine on the network that a container is
// to be on: what the name host-gateway stands for.
func (s *Server) gatewayFor(mode container.NetworkMode) netip.Addr {
	if n, err := s.findNetwork(string(mode)); err == nil && n.Driver == netconf.BridgeDriver && len(n.IPAM.Config) > 0 {
		return n.IPAM.Config[0].Gateway
	}
	return s.opt.Engine.Gateway()
}
