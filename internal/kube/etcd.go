package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/ferryos/ferry/internal/fault"
)

type etcdServer struct {
	*embed.Etcd
	grpc chan *grpc.Server // the one of its clients, once there is one
}

// close ends the member and closes its store. Connections are cut first: Close
// would wait, 5.2 s, for those of this process, which watch to the end.
func (e *etcdServer) close() {
	select {
	case clients := <-e.grpc:
		clients.Stop()
	default: // too early for anybody to be connected
	}
	e.Close()
}

// etcdTime is how long etcd gets to answer; a large store takes seconds to read.
const etcdTime = time.Minute

func (c *Cluster) etcdSocket() string { return "unix://" + filepath.Join(c.opt.RunDir, "etcd.sock") }

// lastWords is etcd's logger. Its errors come back as errors, but where it ends
// the process, as with a full disk, its last message is all there is.
func (c *Cluster) lastWords() *zap.Logger {
	out := slog.NewLogLogger(c.opt.Log.With("part", "etcd").Handler(), slog.LevelError).Writer()
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(out), zap.DPanicLevel))
}

// startEtcd starts a single-member etcd on unix sockets.
func (c *Cluster) startEtcd(ctx, run context.Context) error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "ferry", c.dir("etcd")
	client, err := url.Parse(c.etcdSocket())
	if err != nil {
		return err
	}
	peer, err := url.Parse("unix://" + filepath.Join(c.opt.RunDir, "etcd-peer.sock"))
	if err != nil {
		return err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	// A lone member waits one election timeout at each start, for nobody.
	cfg.TickMs, cfg.ElectionMs = 20, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "5m"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(c.lastWords())
	server := &etcdServer{grpc: make(chan *grpc.Server, 2)}
	cfg.ServiceRegister = func(s *grpc.Server) { server.grpc <- s }
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fault.New(fault.Unavailable, "start: %w", err).Hint("is the disk full, or %s damaged?", cfg.Dir)
	}
	server.Etcd = e
	c.etcd = server
	select {
	case <-e.Server.ReadyNotify():
		c.goRun(run, "etcd", func(ctx context.Context) error {
			select {
			case err := <-e.Err():
				return err
			case <-e.Server.StopNotify():
				return nil
			case <-ctx.Done():
				return nil
			}
		})
		return nil
	case err := <-e.Err():
		return fmt.Errorf("start: %w", err)
	case <-time.After(etcdTime):
		return fault.New(fault.Unavailable, "not ready after %v", etcdTime).Hint("the disk may be too slow or full: %s", cfg.Dir)
	case <-ctx.Done():
		return ctx.Err()
	}
}
