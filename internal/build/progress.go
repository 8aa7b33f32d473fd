package build

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
)

// message is one of Docker's stream of progress. An error is told twice, for
// clients of different ages.
type message struct {
	Stream      string        `json:"stream,omitempty"`
	ID          string        `json:"id,omitempty"`
	Aux         any           `json:"aux,omitempty"`
	ErrorDetail *messageError `json:"errorDetail,omitempty"`
	Error       string        `json:"error,omitempty"`
}

type messageError struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// builtImage tells a client what was made.
type builtImage struct{ ID string }

// messages writes messages; the answer begins with the first.
type messages struct {
	w     http.ResponseWriter
	begun bool
}

func (m *messages) send(msg message) error {
	if !m.begun {
		m.begun = true
		m.w.Header().Set("Content-Type", "application/json")
	}
	if err := json.NewEncoder(m.w).Encode(msg); err != nil {
		return err
	}
	return http.NewResponseController(m.w).Flush()
}

func (m *messages) failed(err error) error {
	code, err := explain(err)
	if !m.begun {
		return err
	}
	return m.send(message{ErrorDetail: &messageError{Code: code, Message: err.Error()}, Error: err.Error()})
}

// textProgress is what Docker's first builder writes: a line for each step, the
// steps' output, and at the end the image's ID.
type textProgress struct {
	messages
	quiet bool
	shown map[digest.Digest]bool
	steps []string
}

// usingCache follows the text of a step that was not run.
const usingCache = " ---> Using cache\n"

func newTextProgress(w http.ResponseWriter, quiet bool) *textProgress {
	return &textProgress{messages: messages{w: w}, quiet: quiet, shown: map[digest.Digest]bool{}}
}

// stepName is how BuildKit names a step of a Dockerfile: [stage 2/5] RUN make.
var stepName = regexp.MustCompile(`^\[(?:(\S+) )?(\d+)/(\d+)\] (?s:(.*))$`)

// update implements progress.
func (p *textProgress) update(s *client.SolveStatus) error {
	if p.quiet {
		return nil
	}
	for _, v := range s.Vertexes {
		step := stepName.FindStringSubmatch(v.Name)
		if step == nil || p.shown[v.Digest] || v.Started == nil && !v.Cached {
			continue
		}
		p.shown[v.Digest] = true
		text := fmt.Sprintf("Step %s/%s : %s\n", step[2], step[3], step[4])
		if step[1] != "" {
			text = fmt.Sprintf("Step %s/%s (%s) : %s\n", step[2], step[3], step[1], step[4])
		}
		p.steps = append(p.steps, text)
		if v.Cached {
			text += usingCache
		}
		if err := p.send(message{Stream: text}); err != nil {
			return err
		}
	}
	for _, w := range s.Warnings {
		if err := p.send(message{Stream: fmt.Sprintf("[Warning] %s\n", w.Short)}); err != nil {
			return err
		}
	}
	for _, l := range s.Logs {
		if err := p.send(message{Stream: string(l.Data)}); err != nil {
			return err
		}
	}
	return nil
}

// built implements progress.
func (p *textProgress) built(id string, tags []string) error {
	if p.quiet {
		return p.send(message{Stream: id + "\n"})
	}
	short := strings.TrimPrefix(id, "sha256:")
	all := []message{{Aux: builtImage{id}}, {Stream: "Successfully built " + short[:min(12, len(short))] + "\n"}}
	for _, tag := range tags {
		if ref, err := reference.ParseNormalizedNamed(tag); err == nil {
			tag = reference.FamiliarString(ref)
		}
		all = append(all, message{Stream: "Successfully tagged " + tag + "\n"})
	}
	for _, msg := range all {
		if err := p.send(msg); err != nil {
			return err
		}
	}
	return nil
}

// traceProgress passes BuildKit's own messages on, to clients that know them.
type traceProgress struct{ messages }

func newTraceProgress(w http.ResponseWriter) *traceProgress { return &traceProgress{messages{w: w}} }

// update implements progress.
func (p *traceProgress) update(s *client.SolveStatus) error {
	for _, res := range s.Marshal() {
		data, err := proto.Marshal(res)
		if err != nil {
			return err
		}
		if err := p.send(message{ID: "moby.buildkit.trace", Aux: data}); err != nil {
			return err
		}
	}
	return nil
}

// built implements progress.
func (p *traceProgress) built(id string, _ []string) error {
	if id == "" {
		return nil
	}
	return p.send(message{ID: "moby.image.id", Aux: builtImage{id}})
}
