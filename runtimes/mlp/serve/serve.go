// Package serve answers the Open Inference Protocol v2 for one network, over
// REST and gRPC, with metrics for Prometheus.
//
// It is given a network that is ready to run and sockets that listen; it reads
// no files. The commands of the mlp runtime import it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ferryos/ferry/runtimes/mlp/oip"
)

var errStopping = errors.New("server is stopping")

// Server serves one model.
type Server struct {
	model    *Model
	log      *slog.Logger
	metrics  *metrics
	stopping atomic.Bool
}

// New returns a server of m.
func New(m *Model, log *slog.Logger) *Server {
	return &Server{model: m, log: log, metrics: newMetrics(m)}
}

// Handler returns the REST side, for a listener of the caller's own.
func (s *Server) Handler() http.Handler { return s.routes() }

// Run answers on the two listeners, which it closes, until ctx is done; then
// it says that it is not ready for drain, so that Services stop sending, ends
// what is under way within grace, and returns nil. rpcs may be nil.
func (s *Server) Run(ctx context.Context, web, rpcs net.Listener, drain, grace time.Duration) error {
	h := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(int(s.model.maxBody())))
	oip.RegisterGRPCInferenceServiceServer(g, rpc{s: s})
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error {
		if err := h.Serve(web); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http: %w", err)
		}
		return nil
	})
	if rpcs != nil {
		eg.Go(func() error {
			if err := g.Serve(rpcs); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve grpc: %w", err)
			}
			return nil
		})
	}
	eg.Go(func() error {
		<-ctx.Done()
		s.stopping.Store(true)
		time.Sleep(drain)
		s.log.Info("stopping")
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		force := context.AfterFunc(limit, g.Stop)
		defer force()
		err := h.Shutdown(limit)
		g.GracefulStop()
		if err != nil {
			return fmt.Errorf("stop http: %w", errors.Join(err, h.Close()))
		}
		return nil
	})
	return eg.Wait()
}

type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	samples  prometheus.Counter
}

func newMetrics(m *Model) *metrics {
	labels := prometheus.Labels{"model": m.Name, "version": m.Version}
	x := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mlp_inference_requests_total", Help: "Inference requests answered.", ConstLabels: labels}, []string{"protocol", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mlp_inference_duration_seconds", Help: "Time to answer an inference request.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12)}, []string{"protocol"}),
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mlp_inference_samples_total", Help: "Samples predicted.", ConstLabels: labels}),
	}
	params := prometheus.NewGauge(prometheus.GaugeOpts{Name: "mlp_model_parameters", Help: "Weights and biases of the model.", ConstLabels: labels})
	params.Set(float64(m.Net.Params()))
	x.registry.MustRegister(x.requests, x.seconds, x.samples, params,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return x
}

// observe starts a clock; the function it returns records time and result.
func (x *metrics) observe(protocol string, err *error) func() {
	start := time.Now()
	return func() {
		result := "ok"
		if *err != nil {
			result = "error"
		}
		x.requests.WithLabelValues(protocol, result).Inc()
		x.seconds.WithLabelValues(protocol).Observe(time.Since(start).Seconds())
	}
}
