package serve

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/oip"
)

// start serves a network of 4 inputs and 3 classes on real sockets.
func start(t *testing.T) (base string, rpcs oip.GRPCInferenceServiceClient) {
	t.Helper()
	network, err := nn.New([]int{4, 5, 3}, nn.ReLU, 1)
	if err != nil {
		t.Fatal(err)
	}
	var ls [2]net.Listener
	for i := range ls {
		if ls[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s := New(&Model{Name: "digits", Version: "v1", Net: network}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ls[0], ls[1], 0, 10*time.Second) }()
	conn, err := grpc.NewClient(ls[1].Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close() // of a test that is over
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return "http://" + ls[0].Addr().String(), oip.NewGRPCInferenceServiceClient(conn)
}

func call(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestREST(t *testing.T) {
	base, _ := start(t)
	input := func(s string) string { return `{"id":"r1","inputs":[` + s + `]}` }
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"server", "GET", "/v2", "", 200, `"name":"ferry-mlp"`},
		{"live", "GET", "/v2/health/live", "", 200, `"live":true`},
		{"ready", "GET", "/v2/health/ready", "", 200, `"ready":true`},
		{"model", "GET", "/v2/models/digits", "", 200, `"inputs":[{"name":"input","datatype":"FP32","shape":[-1,4]}]`},
		{"model version", "GET", "/v2/models/digits/versions/v1", "", 200, `"versions":["v1"]`},
		{"model ready", "GET", "/v2/models/digits/ready", "", 200, `"ready":true`},
		{"version ready", "GET", "/v2/models/digits/versions/v1/ready", "", 200, `"ready":true`},
		{"infer", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}`), 200, `"id":"r1"`},
		{"infer nested", "POST", "/v2/models/digits/versions/v1/infer", input(`{"name":"input","shape":[2,2,2],"datatype":"FP64","data":[[[1,2],[3,4]],[[5,6],[7,8]]]}`), 200, `"model_version":"v1"`},
		{"metrics", "GET", "/metrics", "", 200, `mlp_inference_samples_total{model="digits",version="v1"} 4`},
		{"no such path", "GET", "/v1/models", "", 404, `{"error":`},
		{"wrong method", "GET", "/v2/models/digits/infer", "", 404, `{"error":`},
		{"no such model", "GET", "/v2/models/other", "", 404, `{"error":"model \"other\"`},
		{"no such version", "POST", "/v2/models/digits/versions/v9/infer", "{}", 404, `no version`},
		{"no json", "POST", "/v2/models/digits/infer", "hello", 400, `{"error":`},
		{"no inputs", "POST", "/v2/models/digits/infer", "{}", 400, `0 inputs`},
		{"other input", "POST", "/v2/models/digits/infer", input(`{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}`), 400, `unknown`},
		{"other type", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,4],"datatype":"BYTES","data":["a"]}`), 400, `not a number`},
		{"integer type", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,4],"datatype":"INT32","data":[1,2,3,4]}`), 400, `datatype`},
		{"other shape", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,5],"datatype":"FP32","data":[1,2,3,4,5]}`), 400, `want [n 4]`},
		{"overflowing shape", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,4294967296,4294967296,4],"datatype":"FP32","data":[1,2,3,4]}`), 400, `want [n 4]`},
		{"missing values", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[2,4],"datatype":"FP32","data":[1,2,3,4]}`), 400, `holds 4 values, want 8`},
		{"no data", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,4],"datatype":"FP32"}`), 400, `not an array`},
		{"huge number", "POST", "/v2/models/digits/infer", input(`{"name":"input","shape":[1,4],"datatype":"FP32","data":[1e300,2,3,4]}`), 400, `that fits`},
		{"unknown output", "POST", "/v2/models/digits/infer", `{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}],"outputs":[{"name":"x"}]}`, 400, `output \"x\"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, body := call(t, tc.method, base+tc.path, tc.body)
			if status != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("got %d %s, want %d with %s", status, body, tc.status, tc.want)
			}
		})
	}
}

// TestSameAnswer checks that REST, gRPC and gRPC with raw contents agree.
func TestSameAnswer(t *testing.T) {
	base, client := start(t)
	_, body := call(t, "POST", base+"/v2/models/digits/infer", `{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}`)
	var rest Response
	if err := json.Unmarshal([]byte(body), &rest); err != nil {
		t.Fatal(err)
	}
	var want []float32
	if err := json.Unmarshal(rest.Outputs[0].Data, &want); err != nil {
		t.Fatal(err)
	}
	values := []float32{1, 2, 3, 4}
	req := &oip.ModelInferRequest{ModelName: "digits", Id: "x", Inputs: []*oip.ModelInferRequest_InferInputTensor{{
		Name: "input", Datatype: "FP32", Shape: []int64{1, 4}, Contents: &oip.InferTensorContents{Fp32Contents: values}}}}
	typed, err := client.ModelInfer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := binary.Append(nil, binary.LittleEndian, values)
	if err != nil {
		t.Fatal(err)
	}
	req.Inputs[0].Contents, req.RawInputContents = nil, [][]byte{raw}
	packed, err := client.ModelInfer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if typed.GetId() != "x" || len(want) != 3 || len(packed.GetRawOutputContents()) != 2 {
		t.Fatalf("answers %v, %v", typed, packed)
	}
	for i, w := range want {
		a := typed.GetOutputs()[0].GetContents().GetFp32Contents()[i]
		b := math.Float32frombits(binary.LittleEndian.Uint32(packed.GetRawOutputContents()[0][4*i:]))
		if a != w || b != w {
			t.Errorf("class %d: REST %v, gRPC %v, raw %v", i, w, a, b)
		}
	}
}

func TestGRPC(t *testing.T) {
	_, client := start(t)
	ctx := t.Context()
	if r, err := client.ServerLive(ctx, &oip.ServerLiveRequest{}); err != nil || !r.GetLive() {
		t.Errorf("live: %v, %v", r, err)
	}
	if r, err := client.ServerReady(ctx, &oip.ServerReadyRequest{}); err != nil || !r.GetReady() {
		t.Errorf("ready: %v, %v", r, err)
	}
	if r, err := client.ServerMetadata(ctx, &oip.ServerMetadataRequest{}); err != nil || r.GetName() != serverName {
		t.Errorf("server: %v, %v", r, err)
	}
	if r, err := client.ModelReady(ctx, &oip.ModelReadyRequest{Name: "digits"}); err != nil || !r.GetReady() {
		t.Errorf("model ready: %v, %v", r, err)
	}
	if r, err := client.ModelMetadata(ctx, &oip.ModelMetadataRequest{Name: "digits", Version: "v1"}); err != nil || r.GetInputs()[0].GetShape()[1] != 4 || len(r.GetOutputs()) != 2 {
		t.Errorf("model: %v, %v", r, err)
	}
	if _, err := client.ModelReady(ctx, &oip.ModelReadyRequest{Name: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("other model: %v", err)
	}
	if _, err := client.ModelInfer(ctx, &oip.ModelInferRequest{ModelName: "digits"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no inputs: %v", err)
	}
	nan := &oip.InferTensorContents{Fp32Contents: []float32{1, 2, 3, float32(math.NaN())}}
	if _, err := client.ModelInfer(ctx, &oip.ModelInferRequest{ModelName: "digits", Inputs: []*oip.ModelInferRequest_InferInputTensor{{
		Name: "input", Datatype: "FP32", Shape: []int64{1, 4}, Contents: nan}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("NaN: %v", err)
	}
}
