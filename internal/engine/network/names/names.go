// Package names answers the DNS questions of one container: the names of those
// it shares a network with from a Directory, all others by asking the servers
// that the machine, or the container's owner, names.
//
// Only internal/engine/network imports it; it knows nothing of namespaces and
// firewalls and is the only importer of github.com/miekg/dns. It is no cache
// and no recursive resolver. IPv4 only: a known name has no AAAA, which is said
// so rather than asked elsewhere.
package names

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Directory knows the names of one container's networks.
type Directory interface {
	// Addresses returns those of a name in lower case without its last dot;
	// known is false for a name that somebody else may know.
	Addresses(name string) (addrs []netip.Addr, known bool)
	// Name returns the full name of an address, without a last dot.
	Name(addr netip.Addr) (name string, known bool)
}

// Options are what a Server is made from; all are needed.
type Options struct {
	// UDP and TCP are where questions come in. The Server closes them.
	UDP net.PacketConn
	TCP net.Listener
	// Directory answers first.
	Directory Directory
	// Servers lists, as HOST:PORT, whom to ask in turn what the Directory does not
	// know. It is called for each question, as the machine's settings change.
	Servers func() []string
	// Dial connects to one of Servers.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger
}

const (
	// ttl is how long an answer may be kept: addresses change with a restart.
	ttl = 600
	// maxForwarded bounds the questions that wait for other servers.
	maxForwarded = 256
	// serverTimeout is how long one server gets to answer.
	serverTimeout = 4 * time.Second
)

// Server answers until it is closed.
type Server struct {
	o         Options
	servers   [2]*dns.Server
	tasks     sync.WaitGroup
	forwarded chan struct{} // holds one for each question that is asked elsewhere
	ctx       func() context.Context
	cancel    context.CancelFunc
}

// Serve answers questions until Close. ctx ends with it at the latest.
func Serve(ctx context.Context, o Options) *Server {
	ctx, cancel := context.WithCancel(ctx)
	s := &Server{o: o, forwarded: make(chan struct{}, maxForwarded), ctx: func() context.Context { return ctx }, cancel: cancel}
	handler := dns.HandlerFunc(s.answer)
	s.servers = [2]*dns.Server{{PacketConn: o.UDP, Handler: handler}, {Listener: o.TCP, Handler: handler}}
	for _, server := range s.servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		failed := make(chan struct{})
		s.tasks.Go(func() {
			defer close(failed)
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				o.Log.Warn("names are not answered any more", "address", o.UDP.LocalAddr(), "err", err)
			}
		})
		select { // a server that has not started cannot be shut down
		case <-started:
		case <-failed:
		}
	}
	return s
}

// Close ends the server with all that it does.
func (s *Server) Close() {
	s.cancel()
	for _, server := range s.servers {
		// The only failure is that it was not started, and then it has ended.
		_ = server.Shutdown()
	}
	s.tasks.Wait()
}

func (s *Server) answer(w dns.ResponseWriter, query *dns.Msg) {
	reply := s.own(query)
	if reply == nil {
		reply = s.forward(query, w.RemoteAddr().Network())
	}
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(size)
	}
	if err := w.WriteMsg(reply); err != nil && s.ctx().Err() == nil {
		s.o.Log.Debug("a name's answer was not sent", "err", err)
	}
}

// own answers from the directory; nil if the question is for others.
func (s *Server) own(query *dns.Msg) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery || len(query.Question) != 1 {
		return new(dns.Msg).SetRcode(query, dns.RcodeNotImplemented)
	}
	q := query.Question[0]
	if q.Qclass != dns.ClassINET {
		return nil
	}
	reply := new(dns.Msg).SetReply(query)
	reply.RecursionAvailable = true
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
	name := strings.TrimSuffix(strings.ToLower(q.Name), ".")
	if addr, ok := reverse(name); ok {
		full, known := s.o.Directory.Name(addr)
		if !known {
			return nil
		}
		if q.Qtype == dns.TypePTR {
			reply.Answer = []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(full)}}
		}
		return reply
	}
	addrs, known := s.o.Directory.Addresses(name)
	if !known {
		return nil
	}
	if q.Qtype == dns.TypeA {
		for _, a := range addrs {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		}
	}
	return reply
}

// reverse reads the name under which an address' own name is asked.
func reverse(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	backwards, err := netip.ParseAddr(digits)
	if err != nil || !backwards.Is4() {
		return netip.Addr{}, false
	}
	b := backwards.As4()
	return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}), true
}

// forward asks the other servers in turn. Without an answer of any the reply
// says that this server failed, so that a client may try again.
func (s *Server) forward(query *dns.Msg, network string) *dns.Msg {
	failure := new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	select {
	case s.forwarded <- struct{}{}:
		defer func() { <-s.forwarded }()
	default:
		return failure
	}
	for _, server := range s.o.Servers() {
		reply, err := s.ask(query, network, server)
		if err != nil {
			s.o.Log.Debug("a name server does not answer", "server", server, "err", err)
			continue
		}
		if reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused {
			failure = reply
			continue
		}
		return reply
	}
	return failure
}

func (s *Server) ask(query *dns.Msg, network, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(s.ctx(), serverTimeout)
	defer cancel()
	conn, err := s.o.Dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(closed); conn.Close() })
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	client := dns.Client{Net: network, Timeout: serverTimeout, UDPSize: dns.MaxMsgSize}
	reply, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	if err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	return reply, nil
}
