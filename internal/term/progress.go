package term

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// redraw is how often the line of running steps is drawn on a terminal.
const redraw = 100 * time.Millisecond

var frames = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// Progress shows steps on standard error: on a terminal one line that spins
// for those that run and one that stays for each that ended, elsewhere one
// plain line for each change. Its methods may be called concurrently.
type Progress struct {
	t *Terminal

	mu      sync.Mutex
	running []string
	frame   int
	quit    chan struct{}
	drawer  sync.WaitGroup
}

// Progress begins to show steps; Close ends it.
func (t *Terminal) Progress() *Progress {
	p := &Progress{t: t, quit: make(chan struct{})}
	if t.errTTY {
		p.drawer.Go(p.spin)
	}
	return p
}

func (p *Progress) spin() {
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-tick.C:
			p.mu.Lock()
			p.frame++
			p.draw()
			p.mu.Unlock()
		}
	}
}

// draw replaces the current line by the one of the running steps; p.mu is held.
func (p *Progress) draw() {
	if !p.t.errTTY {
		return
	}
	fmt.Fprint(p.t.Err, "\r\x1b[2K")
	if len(p.running) > 0 {
		fmt.Fprintf(p.t.Err, "%s %s", p.t.PaintErr(Yellow, frames[p.frame%len(frames)]), strings.Join(p.running, ", "))
	}
}

// Start says that a step runs now.
func (p *Progress) Start(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = append(p.running, step)
	p.draw()
}

// Done says that a step ended well; detail ("120 ms") may be empty.
func (p *Progress) Done(step, detail string) { p.end(step, Green, "✓", "done", detail) }

// Fail says that a step failed.
func (p *Progress) Fail(step, detail string) { p.end(step, Red, "✗", "failed", detail) }

func (p *Progress) end(step string, c Colour, mark, word, detail string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = slices.DeleteFunc(p.running, func(s string) bool { return s == step })
	if !p.t.errTTY {
		line := step + ": " + word
		if detail != "" {
			line += " (" + detail + ")"
		}
		fmt.Fprintln(p.t.Err, line)
		return
	}
	fmt.Fprintf(p.t.Err, "\r\x1b[2K%s %-24s %s\n", p.t.PaintErr(c, mark), step, p.t.PaintErr(Dim, detail))
	p.draw()
}

// Close removes what still spins and waits for the drawing to end.
func (p *Progress) Close() {
	close(p.quit)
	p.drawer.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = nil
	p.draw()
}
