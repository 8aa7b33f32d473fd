package cri_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine/cri"
)

const referenceFile = "../../../docs/reference/cri.md"

// TestReference compares docs/reference/cri.md with what the socket answers to
// an empty request of every method that the interface has.
func TestReference(t *testing.T) {
	m, service := newService(t)
	path := filepath.Join(m.Dir(), "cri.sock")
	start(t, cri.NewSocket(service, path, slog.New(slog.NewTextHandler(t.Output(), nil))))
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var served []string
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			method := methods.Get(j)
			state := "yes"
			if code := call(t, conn, method); code == codes.Unimplemented {
				state = "no"
			}
			served = append(served, fmt.Sprintf("%s: %s", method.Name(), state))
		}
	}
	text, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (yes|no) \\|").FindAllStringSubmatch(string(text), -1) {
		written = append(written, row[1]+": "+row[2])
	}
	if !slices.Equal(served, written) {
		t.Errorf("%s and the socket differ, in the order of api.proto:\n%s\nthe page has:\n%s", referenceFile, strings.Join(served, "\n"), strings.Join(written, "\n"))
	}
}

// call sends an empty request and returns the answer's code.
func call(t *testing.T, conn *grpc.ClientConn, method protoreflect.MethodDescriptor) codes.Code {
	t.Helper()
	name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	request, answer := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !method.IsStreamingServer() {
		return status.Code(conn.Invoke(ctx, name, request, answer))
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(request); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if method.Name() == "GetContainerEvents" { // which has nothing to tell until something happens
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		return codes.OK
	}
	return status.Code(stream.RecvMsg(answer))
}
