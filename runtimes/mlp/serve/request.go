package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// How long a request may be.
const (
	mostBytes   = 64 << 20 // whatever the model
	numberBytes = 12       // of JSON for a value: a float32 between 0 and 1, and a comma
	otherBytes  = 64 << 10 // for all else
	shortBytes  = 4 << 10  // of JSON for a shape, and for the outputs' names
)

// maxBody is how many bytes a request may have: what the most samples need.
func (m *Model) maxBody() int64 {
	return min(mostBytes, maxRows*int64(m.Net.Inputs())*numberBytes+otherBytes)
}

// tooLargeError is a request longer than that: status 413.
type tooLargeError struct{ msg string }

func (e *tooLargeError) Error() string { return e.msg }

// request is a Request as it is read: in a few times the memory that its JSON
// takes, whatever that is, so that one request cannot end the server. Lists
// could take fifty times as much.
type request struct {
	ID      string          `json:"id"`
	Inputs  [2]*input       `json:"inputs"` // the second only tells that there are too many
	Outputs short[[]Output] `json:"outputs"`
}

type input struct {
	Name     string         `json:"name"`
	Shape    short[[]int64] `json:"shape"`
	Datatype string         `json:"datatype"`
	Data     numbers        `json:"data"`
}

// readRequest reads a request that has one input.
func (s *Server) readRequest(r *http.Request) (*request, error) {
	limit := s.model.maxBody()
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, badRequest("the request ended early: %v", err)
	}
	if int64(len(body)) > limit {
		// Most clients listen only when they have sent all.
		if _, err := io.CopyN(io.Discard, r.Body, mostBytes); err != nil && !errors.Is(err, io.EOF) {
			return nil, badRequest("the request ended early: %v", err)
		}
		return nil, &tooLargeError{fmt.Sprintf(
			"the request is longer than %d bytes, the most for samples of %d values: send fewer at a time", limit, s.model.Net.Inputs())}
	}
	req := &request{Inputs: [2]*input{{Data: numbers{max: maxRows * s.model.Net.Inputs()}}}}
	if err := json.Unmarshal(body, req); err != nil {
		return nil, badRequest("request is not JSON as the protocol wants it: %v", err)
	}
	in := req.Inputs[0]
	switch {
	case req.Inputs[1] != nil:
		return nil, badRequest("request has more than 1 input, the model takes 1, %q", inputName)
	case in == nil || in.Name == "":
		return nil, badRequest("request has 0 inputs with a name, the model takes 1, %q", inputName)
	case in.Data.err != nil:
		return nil, badRequest("input %q: %v", in.Name, in.Data.err)
	case in.Data.values == nil:
		return nil, badRequest("input %q: %v", in.Name, errNoArray)
	}
	return req, nil
}

// short is a value whose JSON must not be long.
type short[T any] struct{ value T }

// UnmarshalJSON implements json.Unmarshaler.
func (s *short[T]) UnmarshalJSON(raw []byte) error {
	if len(raw) > shortBytes {
		return fmt.Errorf("a list of %d bytes is too long", len(raw))
	}
	return json.Unmarshal(raw, &s.value)
}

var errNoArray = errors.New("data is not an array of numbers")

// numbers are the values of an array, nested or not, in the order they stand.
type numbers struct {
	max    int
	values []float32
	err    error // kept, for the request's reader to say of which input it is
}

// UnmarshalJSON implements json.Unmarshaler. What it is given is valid JSON, so
// brackets and commas need no checking.
func (n *numbers) UnmarshalJSON(raw []byte) error {
	n.values, n.err = nil, nil
	if raw[0] != '[' {
		n.err = errNoArray
		return nil
	}
	values := make([]float32, 0, min(n.max, bytes.Count(raw, []byte{','})+1))
	for i := 0; i < len(raw); {
		switch c := raw[i]; c {
		case '[', ']', ',', ' ', '\t', '\r', '\n':
			i++
		default:
			end := i
			for end < len(raw) && raw[end] != ',' && raw[end] != ']' && raw[end] > ' ' {
				end++
			}
			v, err := strconv.ParseFloat(string(raw[i:end]), 32)
			if err != nil {
				n.err = fmt.Errorf("data value %d, %.20q, is not a number that fits", len(values), raw[i:end])
				return nil
			}
			if len(values) == n.max {
				n.err = fmt.Errorf("data holds more than %d values, those of %d samples", n.max, maxRows)
				return nil
			}
			values = append(values, float32(v))
			i = end
		}
	}
	n.values = values
	return nil
}
