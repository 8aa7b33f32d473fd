package names

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// directory is a Directory of two names.
type directory struct{}

var webAddr, manyAddrs = netip.MustParseAddr("10.0.0.2"), func() (out []netip.Addr) {
	for i := range 100 {
		out = append(out, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
	}
	return out
}()

func (directory) Addresses(name string) ([]netip.Addr, bool) {
	switch name {
	case "web", "web.app":
		return []netip.Addr{webAddr}, true
	case "many":
		return manyAddrs, true
	}
	return nil, false
}

func (directory) Name(addr netip.Addr) (string, bool) { return "web.app", addr == webAddr }

// listen opens one port for UDP and TCP, which others may have for one of them.
func listen(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tcp, err := net.Listen("tcp", udp.LocalAddr().String())
		if err == nil {
			return udp, tcp
		}
		udp.Close()
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

// serve starts a server with these others to ask and returns its UDP address;
// TCP has the same.
func serve(t *testing.T, others ...string) string {
	t.Helper()
	udp, tcp := listen(t)
	s := Serve(t.Context(), Options{UDP: udp, TCP: tcp, Directory: directory{}, Servers: func() []string { return others },
		Dial: new(net.Dialer).DialContext, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	return udp.LocalAddr().String()
}

// other is a server elsewhere that answers every question by answer.
func other(t *testing.T, answer func(*dns.Msg) *dns.Msg) string {
	t.Helper()
	udp, tcp := listen(t)
	for _, s := range []*dns.Server{{PacketConn: udp}, {Listener: tcp}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
			if r := answer(m); r != nil {
				if err := w.WriteMsg(r); err != nil {
					t.Error(err)
				}
			}
		})
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return udp.LocalAddr().String()
}

func ask(t *testing.T, network, server, name string, kind uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	reply, _, err := (&dns.Client{Net: network, Timeout: 10 * time.Second}).ExchangeContext(t.Context(), m, server)
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[kind], err)
	}
	return reply
}

func TestServer(t *testing.T) {
	elsewhere := other(t, func(m *dns.Msg) *dns.Msg {
		r := new(dns.Msg).SetReply(m)
		switch m.Question[0].Name {
		case "example.org.":
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 1)}}
		default:
			r.Rcode = dns.RcodeNameError
		}
		return r
	})
	refusing := other(t, func(m *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(m, dns.RcodeRefused) })
	server := serve(t, "127.0.0.1:1", refusing, elsewhere)
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range []struct {
			name  string
			kind  uint16
			rcode int
			want  string
		}{
			{"web", dns.TypeA, dns.RcodeSuccess, "web.\t600\tIN\tA\t10.0.0.2"},
			{"WEB.app", dns.TypeA, dns.RcodeSuccess, "WEB.app.\t600\tIN\tA\t10.0.0.2"},
			{"web", dns.TypeAAAA, dns.RcodeSuccess, ""},
			{"web", dns.TypeMX, dns.RcodeSuccess, ""},
			{"2.0.0.10.in-addr.arpa", dns.TypePTR, dns.RcodeSuccess, "2.0.0.10.in-addr.arpa.\t600\tIN\tPTR\tweb.app."},
			{"3.0.0.10.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, ""},
			{"example.org", dns.TypeA, dns.RcodeSuccess, "example.org.\t0\tIN\tA\t192.0.2.1"},
			{"nobody", dns.TypeA, dns.RcodeNameError, ""},
		} {
			r := ask(t, network, server, tt.name, tt.kind)
			var got []string
			for _, rr := range r.Answer {
				got = append(got, rr.String())
			}
			if r.Rcode != tt.rcode || strings.Join(got, "\n") != tt.want || !r.RecursionAvailable && tt.rcode == 0 && tt.name != "example.org" {
				t.Errorf("%s %s by %s: %s", tt.name, dns.TypeToString[tt.kind], network, r)
			}
		}
	}
	if r := ask(t, "udp", server, "many", dns.TypeA); !r.Truncated || len(r.Answer) == 0 || len(r.Answer) >= len(manyAddrs) {
		t.Errorf("a long answer by UDP has %d addresses, truncated %v", len(r.Answer), r.Truncated)
	}
	if r := ask(t, "tcp", server, "many", dns.TypeA); r.Truncated || len(r.Answer) != len(manyAddrs) {
		t.Errorf("a long answer by TCP has %d addresses, truncated %v", len(r.Answer), r.Truncated)
	}
}

// TestNobodyAnswers: without a server that answers the client hears of a failure.
func TestNobodyAnswers(t *testing.T) {
	if r := ask(t, "udp", serve(t), "example.org", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("no server: %s", r)
	}
	refusing := other(t, func(m *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(m, dns.RcodeRefused) })
	if r := ask(t, "udp", serve(t, refusing), "example.org", dns.TypeA); r.Rcode != dns.RcodeRefused {
		t.Errorf("a server that refuses: %s", r)
	}
}

// TestCloseWhileAsked: the end does not wait for servers that stay silent.
func TestCloseWhileAsked(t *testing.T) {
	t.Cleanup(func() { // after the server's own
		buf := make([]byte, 1<<20)
		if stacks := string(buf[:runtime.Stack(buf, true)]); strings.Contains(stacks, "names.(*Server)") {
			t.Errorf("goroutines are left:\n%s", stacks)
		}
	})
	asked := make(chan struct{})
	silent := other(t, func(*dns.Msg) *dns.Msg { close(asked); return nil })
	server := serve(t, silent)
	conn, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wire, err := new(dns.Msg).SetQuestion("example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(wire); err != nil {
		t.Fatal(err)
	}
	<-asked
	// The server is closed at the test's end.
}

// FuzzAnswer: whatever a container sends, the server goes on.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.", "2.0.0.10.in-addr.arpa.", "x.in-addr.arpa.", "."} {
		wire, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Add([]byte("no DNS at all"))
	s := &Server{o: Options{Directory: directory{}, Servers: func() []string { return nil }, Log: slog.New(slog.DiscardHandler)},
		forwarded: make(chan struct{}, 1), ctx: func() context.Context { return f.Context() }}
	f.Fuzz(func(t *testing.T, wire []byte) {
		m := new(dns.Msg)
		if m.Unpack(wire) != nil {
			return
		}
		reply := s.own(m)
		if reply == nil {
			reply = s.forward(m, "udp")
		}
		if _, err := reply.Pack(); err != nil && reply.Rcode == dns.RcodeSuccess && len(reply.Answer) > 0 {
			t.Errorf("no answer to %s: %v", fmt.Sprint(m), err)
		}
	})
}
