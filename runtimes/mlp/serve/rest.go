package serve

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Tensor is one tensor of a request or response in JSON.
type Tensor struct {
	Name     string          `json:"name"`
	Shape    []int64         `json:"shape"`
	Datatype string          `json:"datatype"`
	Data     json.RawMessage `json:"data"` // row-major, flat or nested
}

// Output names a tensor that a request wants back.
type Output struct {
	Name string `json:"name"`
}

// Request is the body of POST …/infer, as a client writes it.
type Request struct {
	ID      string   `json:"id,omitempty"`
	Inputs  []Tensor `json:"inputs"`
	Outputs []Output `json:"outputs,omitempty"`
}

// Response is the answer to it.
type Response struct {
	ModelName    string   `json:"model_name"`
	ModelVersion string   `json:"model_version,omitempty"`
	ID           string   `json:"id,omitempty"`
	Outputs      []Tensor `json:"outputs"`
}

type handler func(w http.ResponseWriter, r *http.Request) (any, error)

// routes is every path the server answers over HTTP.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, h handler) { mux.Handle("GET "+path, s.wrap(h)) }
	get("/v2", s.serverMetadata)
	get("/v2/{$}", s.serverMetadata)
	get("/v2/health/live", func(http.ResponseWriter, *http.Request) (any, error) { return map[string]bool{"live": true}, nil })
	get("/v2/health/ready", s.serverReady)
	for _, base := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		get(base, s.modelMetadata)
		get(base+"/ready", s.modelReady)
		mux.Handle("POST "+base+"/infer", s.wrap(s.inferREST))
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.Handle("/", s.wrap(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return nil, &notFoundError{fmt.Sprintf("no %s %s here", r.Method, r.URL.Path)}
	}))
	return mux
}

// wrap writes what h returns as JSON: its value, or {"error": …} with the
// status that the error's kind stands for.
func (s *Server) wrap(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := h(w, r)
		status := http.StatusOK
		if err != nil {
			status = statusOf(err)
			v = map[string]string{"error": err.Error()}
		}
		body, err := json.Marshal(v)
		if err != nil {
			status, body = http.StatusInternalServerError, []byte(`{"error":"the answer has no JSON form"}`)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		if _, err := w.Write(append(body, '\n')); err != nil {
			s.log.Debug("write answer", "path", r.URL.Path, "err", err)
		}
	})
}

func statusOf(err error) int {
	var tooLarge *tooLargeError
	var bad *requestError
	var missing *notFoundError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.As(err, &missing):
		return http.StatusNotFound
	case errors.Is(err, errStopping):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *Server) serverMetadata(http.ResponseWriter, *http.Request) (any, error) {
	return map[string]any{"name": serverName, "version": s.model.Version, "extensions": []string{}}, nil
}

func (s *Server) serverReady(http.ResponseWriter, *http.Request) (any, error) {
	if s.stopping.Load() {
		return nil, errStopping
	}
	return map[string]bool{"ready": true}, nil
}

func (s *Server) modelReady(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.model.check(r.PathValue("model"), r.PathValue("version")); err != nil {
		return nil, err
	}
	if s.stopping.Load() {
		return nil, errStopping
	}
	return map[string]any{"name": s.model.Name, "ready": true}, nil
}

func (s *Server) modelMetadata(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.model.check(r.PathValue("model"), r.PathValue("version")); err != nil {
		return nil, err
	}
	return map[string]any{
		"name": s.model.Name, "versions": []string{s.model.Version}, "platform": platform,
		"inputs": s.model.inputs(), "outputs": s.model.outputs(),
	}, nil
}

func (s *Server) inferREST(_ http.ResponseWriter, r *http.Request) (v any, err error) {
	defer s.metrics.observe("rest", &err)()
	if err := s.model.check(r.PathValue("model"), r.PathValue("version")); err != nil {
		return nil, err
	}
	if r.Header.Get("Inference-Header-Content-Length") != "" {
		return nil, badRequest("the binary tensor extension is not served here; send the tensors as JSON, or use gRPC")
	}
	req, err := s.readRequest(r)
	if err != nil {
		return nil, err
	}
	in := req.Inputs[0]
	rows, err := s.model.rows(in.Name, in.Datatype, in.Shape.value, len(in.Data.values))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range req.Outputs.value {
		names = append(names, o.Name)
	}
	probs, class, err := wanted(names)
	if err != nil {
		return nil, err
	}
	a, err := s.model.infer(in.Data.values, rows)
	if err != nil {
		return nil, err
	}
	s.metrics.samples.Add(float64(rows))
	res := Response{ModelName: s.model.Name, ModelVersion: s.model.Version, ID: req.ID}
	if probs {
		if err := res.add(probsName, "FP32", []int64{int64(rows), int64(s.model.Net.Classes())}, a.probs); err != nil {
			return nil, err
		}
	}
	if class {
		if err := res.add(className, "INT64", []int64{int64(rows)}, a.classes); err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (res *Response) add(name, datatype string, shape []int64, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode output %q: %w", name, err)
	}
	res.Outputs = append(res.Outputs, Tensor{Name: name, Datatype: datatype, Shape: shape, Data: raw})
	return nil
}
