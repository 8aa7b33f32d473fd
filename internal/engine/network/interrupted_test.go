package network

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ferryos/ferry/internal/fault"
)

// TestNetworkOfAnAttachmentUnderWay: a network stays while an attachment to it
// is being made, until it is known as a member.
func TestNetworkOfAnAttachmentUnderWay(t *testing.T) {
	n := start(t, networkOptions(t))
	app := define(t, n, Definition{Name: "app"})
	a := &attached{Attachment: Attachment{ID: "a"}}
	if err := n.place(t.Context(), a, AttachOptions{Networks: []EndpointSpec{{Network: app.ID}}}); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveNetwork(t.Context(), app.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("a network is removed under an attachment: %v", err)
	}
	n.doom(a)
	for _, joined := range a.joined {
		joined()
	}
	// After Attach nothing is held but by the attachment.
	on(t, n, "b", app)
	if err := n.Detach(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveNetwork(t.Context(), app.ID); err != nil {
		t.Error(err)
	}
}

// TestRouteAfterAnInterruptedChange: a process that is killed between the lease
// and the interfaces of a Connect or Disconnect leaves a container whose default
// route leads through an interface that the next start removes.
func TestRouteAfterAnInterruptedChange(t *testing.T) {
	o := networkOptions(t)
	n := start(t, o)
	app, first := define(t, n, Definition{Name: "app"}), define(t, n, Definition{Name: "a-first"})
	a, b, c := attach(t, n, "a"), on(t, n, "b", app), on(t, n, "c", app)
	var err error
	for _, p := range []*Attachment{&a, &b} {
		if *p, err = n.Connect(t.Context(), p.ID, EndpointSpec{Network: first.ID}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []Attachment{a, b} {
		p.setEndpoints(slices.Clone(p.Endpoints[:1]))
		if err := n.leases.save(p); err != nil {
			t.Fatal(err)
		}
	}
	// What a container made of its route itself is its own.
	err = inNetnsHandle(c.NetnsPath, func(inside *netlink.Handle) error {
		link, err := inside.LinkByName("lo")
		if err != nil {
			return err
		}
		return inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Scope: netlink.SCOPE_LINK})
	})
	if err != nil {
		t.Fatal(err)
	}
	kill(t, n)
	n = restart(t, o)
	for _, want := range []struct {
		a    Attachment
		link string
	}{{a, "eth0"}, {b, "eth0"}, {c, "lo"}} {
		err := inNetnsHandle(want.a.NetnsPath, func(inside *netlink.Handle) error {
			routes, err := defaultRoutes(inside)
			if err != nil || len(routes) != 1 {
				t.Errorf("default routes of %s: %v, %v", want.a.ID, routes, err)
				return nil
			}
			link, err := inside.LinkByIndex(routes[0].LinkIndex)
			if err == nil && link.Attrs().Name != want.link {
				t.Errorf("the default route of %s leads through %s, want %s", want.a.ID, link.Attrs().Name, want.link)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	for _, p := range []Attachment{a, b, c} {
		if err := n.Detach(t.Context(), p.ID); err != nil {
			t.Error(err)
		}
	}
	for _, d := range []Definition{app, first} {
		if err := n.RemoveNetwork(t.Context(), d.ID); err != nil {
			t.Error(err)
		}
	}
}
