package serve

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ferryos/ferry/runtimes/mlp/oip"
)

// rpc is the protocol's gRPC service over the same model.
type rpc struct {
	oip.UnimplementedGRPCInferenceServiceServer
	s *Server
}

var _ oip.GRPCInferenceServiceServer = rpc{}

func (rpc) ServerLive(context.Context, *oip.ServerLiveRequest) (*oip.ServerLiveResponse, error) {
	return &oip.ServerLiveResponse{Live: true}, nil
}

func (r rpc) ServerReady(context.Context, *oip.ServerReadyRequest) (*oip.ServerReadyResponse, error) {
	return &oip.ServerReadyResponse{Ready: !r.s.stopping.Load()}, nil
}

func (r rpc) ModelReady(_ context.Context, req *oip.ModelReadyRequest) (*oip.ModelReadyResponse, error) {
	if err := r.s.model.check(req.GetName(), req.GetVersion()); err != nil {
		return nil, rpcError(err)
	}
	return &oip.ModelReadyResponse{Ready: !r.s.stopping.Load()}, nil
}

func (r rpc) ServerMetadata(context.Context, *oip.ServerMetadataRequest) (*oip.ServerMetadataResponse, error) {
	return &oip.ServerMetadataResponse{Name: serverName, Version: r.s.model.Version}, nil
}

func (r rpc) ModelMetadata(_ context.Context, req *oip.ModelMetadataRequest) (*oip.ModelMetadataResponse, error) {
	m := r.s.model
	if err := m.check(req.GetName(), req.GetVersion()); err != nil {
		return nil, rpcError(err)
	}
	convert := func(in []tensorMeta) (out []*oip.ModelMetadataResponse_TensorMetadata) {
		for _, t := range in {
			out = append(out, &oip.ModelMetadataResponse_TensorMetadata{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape})
		}
		return out
	}
	return &oip.ModelMetadataResponse{
		Name: m.Name, Versions: []string{m.Version}, Platform: platform,
		Inputs: convert(m.inputs()), Outputs: convert(m.outputs()),
	}, nil
}

func (r rpc) ModelInfer(_ context.Context, req *oip.ModelInferRequest) (*oip.ModelInferResponse, error) {
	res, err := r.infer(req)
	if err != nil {
		return nil, rpcError(err)
	}
	return res, nil
}

// infer answers in raw contents when it was asked in raw contents, as the
// protocol's other servers do.
func (r rpc) infer(req *oip.ModelInferRequest) (res *oip.ModelInferResponse, err error) {
	defer r.s.metrics.observe("grpc", &err)()
	m := r.s.model
	if err := m.check(req.GetModelName(), req.GetModelVersion()); err != nil {
		return nil, err
	}
	if len(req.GetInputs()) != 1 {
		return nil, badRequest("request has %d inputs, the model takes 1, %q", len(req.GetInputs()), inputName)
	}
	values, err := contents(req)
	if err != nil {
		return nil, err
	}
	in := req.GetInputs()[0]
	rows, err := m.rows(in.GetName(), in.GetDatatype(), in.GetShape(), len(values))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range req.GetOutputs() {
		names = append(names, o.GetName())
	}
	probs, class, err := wanted(names)
	if err != nil {
		return nil, err
	}
	a, err := m.infer(values, rows)
	if err != nil {
		return nil, err
	}
	r.s.metrics.samples.Add(float64(rows))
	res = &oip.ModelInferResponse{ModelName: m.Name, ModelVersion: m.Version, Id: req.GetId()}
	raw := len(req.GetRawInputContents()) > 0
	add := func(name, datatype string, shape []int64, c *oip.InferTensorContents, data any) error {
		t := &oip.ModelInferResponse_InferOutputTensor{Name: name, Datatype: datatype, Shape: shape}
		if raw {
			b, err := binary.Append(nil, binary.LittleEndian, data)
			if err != nil {
				return err
			}
			res.RawOutputContents = append(res.RawOutputContents, b)
		} else {
			t.Contents = c
		}
		res.Outputs = append(res.Outputs, t)
		return nil
	}
	if probs {
		err = add(probsName, "FP32", []int64{int64(rows), int64(m.Net.Classes())}, &oip.InferTensorContents{Fp32Contents: a.probs}, a.probs)
	}
	if class && err == nil {
		err = add(className, "INT64", []int64{int64(rows)}, &oip.InferTensorContents{Int64Contents: a.classes}, a.classes)
	}
	return res, err
}

// contents returns the values of the request's one input, raw or typed.
func contents(req *oip.ModelInferRequest) ([]float32, error) {
	in := req.GetInputs()[0]
	raw := req.GetRawInputContents()
	switch {
	case len(raw) > 0 && in.GetContents() != nil:
		return nil, badRequest("input %q has both contents and raw contents", in.GetName())
	case len(raw) > 1:
		return nil, badRequest("request has %d raw contents for one input", len(raw))
	case len(raw) == 0 && in.GetDatatype() == "FP64":
		return narrow(in.GetContents().GetFp64Contents()), nil
	case len(raw) == 0:
		return in.GetContents().GetFp32Contents(), nil
	}
	width := 4
	if in.GetDatatype() == "FP64" {
		width = 8
	}
	if len(raw[0])%width != 0 {
		return nil, badRequest("raw contents of %d bytes are not whole values of %s", len(raw[0]), in.GetDatatype())
	}
	out := make([]float32, len(raw[0])/width)
	for i := range out {
		b := raw[0][i*width:]
		if width == 8 {
			out[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(b)))
		} else {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b))
		}
	}
	return out, nil
}

func narrow(in []float64) []float32 {
	out := make([]float32, len(in))
	for i, v := range in {
		out[i] = float32(v)
	}
	return out
}

func rpcError(err error) error {
	var bad *requestError
	var missing *notFoundError
	switch {
	case errors.As(err, &bad):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.As(err, &missing):
		return status.Error(codes.NotFound, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
