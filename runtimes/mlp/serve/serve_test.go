package serve

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
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

// network is one of 4 inputs and 3 classes.
func network(t *testing.T) *nn.Network {
	t.Helper()
	n, err := nn.New([]int{4, 5, 3}, nn.ReLU, 1)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// start serves a network on real sockets.
func start(t *testing.T) (base string, rpcs oip.GRPCInferenceServiceClient) {
	t.Helper()
	var ls [2]net.Listener
	for i := range ls {
		var err error
		if ls[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s := New(&Model{Name: "digits", Version: "v1", Net: network(t)}, slog.New(slog.DiscardHandler))
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

// TestTooLarge has a request for more samples than are served at a time, and
// ones that would take many times their length in memory.
func TestTooLarge(t *testing.T) {
	base, _ := start(t)
	url := base + "/v2/models/digits/infer"
	full := func(rows int, number string) string {
		data := strings.TrimSuffix(strings.Repeat(number+",", rows*4), ",")
		return fmt.Sprintf(`{"inputs":[{"name":"input","shape":[%d,4],"datatype":"FP32","data":[%s]}]}`, rows, data)
	}
	limit := int((&Model{Net: network(t)}).maxBody())
	list := func(of string) string {
		return strings.TrimSuffix(strings.Repeat(of+",", (limit-200)/(len(of)+1)), ",")
	}
	for _, tc := range []struct {
		name, body string
		status     int
		want       string
	}{
		{"the most samples", full(maxRows, "0.123456789"), 200, `"class"`},
		{"longer numbers, fewer samples", full(maxRows/2, "0.00392156862745098"), 200, `"class"`},
		{"a sample too many", full(maxRows+1, "0"), 400, "more than 16384 values"},
		{"too long", full(2*maxRows, "0.123456789"), 413, "the most for samples of 4 values: send fewer"},
		{"many inputs", `{"inputs":[` + list("{}") + `]}`, 400, "more than 1 input"},
		{"many values", `{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","data":[` + list("0") + `]}]}`, 400, "more than 16384 values"},
		{"many dimensions", `{"inputs":[{"name":"input","shape":[` + list("1") + `],"datatype":"FP32","data":[1]}]}`, 400, "too long"},
		{"many outputs", `{"outputs":[` + list("{}") + `]}`, 400, "too long"},
		{"many of what is not known", `{"x":[` + list("{}") + `]}`, 400, "0 inputs"},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprint(tc.name, ", chunked=", chunked), func(t *testing.T) {
				var body io.Reader = strings.NewReader(tc.body)
				if chunked {
					body = io.MultiReader(body) // of unknown length
				}
				res, err := http.Post(url, "application/json", body)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				answer, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != tc.status || !strings.Contains(string(answer), tc.want) {
					t.Errorf("got %d %.200s, %v, want %d with %s", res.StatusCode, answer, err, tc.status, tc.want)
				}
			})
		}
	}
}

// TestMemory measures what a request takes, whether it is answered or refused.
func TestMemory(t *testing.T) {
	h := New(&Model{Name: "digits", Version: "v1", Net: network(t)}, slog.New(slog.DiscardHandler))
	limit := h.model.maxBody()
	for _, tc := range []struct{ name, before, item, after string }{
		{"inputs", `{"inputs":[`, "{}", `]}`},
		{"values", `{"inputs":[{"name":"input","shape":[4096,4],"datatype":"FP32","data":[`, "0", `]}]}`},
		{"shape", `{"inputs":[{"name":"input","shape":[`, "1", `]}]}`},
		{"outputs", `{"outputs":[`, "{}", `]}`},
	} {
		items := strings.Repeat(tc.item+",", (int(limit)-len(tc.before)-len(tc.after))/(len(tc.item)+1))
		body := tc.before + strings.TrimSuffix(items, ",") + tc.after
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/v2/models/digits/infer", strings.NewReader(body)))
		runtime.ReadMemStats(&after)
		if took := int64(after.TotalAlloc - before.TotalAlloc); took > 4*limit {
			t.Errorf("%s: a request of %d bytes takes %d bytes of memory", tc.name, len(body), took)
		}
	}
}

func TestMaxBody(t *testing.T) {
	for inputs, want := range map[int]int64{4: 4096*4*12 + 64<<10, 784: 4096*784*12 + 64<<10, 5000: 64 << 20} {
		net, err := nn.New([]int{inputs, 2}, nn.ReLU, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Model{Net: net}).maxBody(); got != want {
			t.Errorf("%d inputs: %d bytes, want %d", inputs, got, want)
		}
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
