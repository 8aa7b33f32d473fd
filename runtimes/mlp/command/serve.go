package command

import (
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/serve"
)

func serveCommand() *cobra.Command {
	var m modelFlags
	var name, version, httpAddr, grpcAddr string
	var drain, grace time.Duration
	c := &cobra.Command{
		Use:     "serve",
		Short:   "Serve a model over the Open Inference Protocol v2",
		Long:    "Serve a model over the Open Inference Protocol v2: REST and /metrics on --http, gRPC on --grpc.\nA model that does not fit is refused before anything listens.",
		Example: "  mlp serve --model /models --name digits",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			network, err := m.load()
			if err != nil {
				return err
			}
			if name == "" || drain < 0 || grace < 0 {
				return usageError{hint.Errorf("See 'mlp serve --help'.", "--name is empty, or --drain or --grace is negative")}
			}
			web, err := listen(httpAddr)
			if err != nil {
				return err
			}
			var rpcs net.Listener
			if grpcAddr != "" {
				if rpcs, err = listen(grpcAddr); err != nil {
					web.Close()
					return err
				}
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			log.Info("serving", "model", name, "version", version, "layers", fmt.Sprint(network.Sizes()), "http", web.Addr().String(), "grpc", grpcAddr)
			return serve.New(&serve.Model{Name: name, Version: version, Net: network}, log).Run(c.Context(), web, rpcs, drain, grace)
		},
	}
	m.add(c)
	f := c.Flags()
	f.StringVar(&name, "name", "mlp", "name that clients ask for")
	f.StringVar(&version, "model-version", "1", "version that clients may ask for")
	f.StringVar(&httpAddr, "http", ":8080", "address of REST and metrics")
	f.StringVar(&grpcAddr, "grpc", ":8081", "address of gRPC; empty for none")
	f.DurationVar(&drain, "drain", time.Second, "time to answer on while not ready, after SIGTERM")
	f.DurationVar(&grace, "grace", 10*time.Second, "time for requests under way to end, after that")
	return c
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, hint.Errorf("Choose a free port with --http and --grpc.", "serve: %w", err)
	}
	return l, nil
}
