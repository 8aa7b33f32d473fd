package build

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// TestServeHTTP2 calls a gRPC service on one connection, and sees serving end
// with the client and with the context.
func TestServeHTTP2(t *testing.T) {
	service := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(service, health.NewServer())
	for _, ending := range []string{"client", "context"} {
		t.Run(ending, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ours, theirs := net.Pipe()
			served := make(chan struct{})
			go func() {
				defer close(served)
				serveHTTP2(ctx, ours, service, slog.New(slog.NewTextHandler(t.Output(), nil)))
			}()
			client, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return theirs, nil }))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for range 2 {
				answer, err := grpc_health_v1.NewHealthClient(client).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
				if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
					t.Fatalf("Check = %v, %v", answer, err)
				}
			}
			if ending == "client" {
				client.Close()
			} else {
				cancel()
			}
			select {
			case <-served:
			case <-time.After(10 * time.Second):
				t.Fatal("serving does not end")
			}
		})
	}
}
