package proc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/engine/crilog"
)

// TestLineWriter: however a stream is cut into reads, the log holds it byte for
// byte, in entries no longer than maxLine, also across rotations.
func TestLineWriter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var want []byte
	for len(want) < 4<<20 {
		line := bytes.Repeat([]byte{byte('a' + rnd.IntN(26))}, []int{0, 1, 7, 80, maxLine - 1, maxLine, maxLine + 1, 3*maxLine + 5}[rnd.IntN(8)])
		want = append(append(want, line...), '\n')
	}
	want = append(want, "an end without a newline"...)
	for _, size := range []int{1, 100, maxLine, 32 << 10, readSize, len(want)} {
		t.Run(fmt.Sprint("reads of ", size), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			log, err := openLog(path, 1<<20, 100)
			if err != nil {
				t.Fatal(err)
			}
			all := want
			if size == 1 {
				all = want[len(want)-100_000:]
			}
			w := &lineWriter{log: log, stream: "stdout"}
			for rest := all; len(rest) > 0; {
				n := min(size, len(rest))
				w.write(rest[:n])
				rest = rest[n:]
			}
			w.flush()
			if err := log.close(); err != nil {
				t.Fatal(err)
			}
			var got []byte
			err = crilog.Read(t.Context(), path, crilog.Options{Tail: -1, Rotated: true}, func(e crilog.Entry) error {
				if len(e.Content) > maxLine || e.Time.IsZero() {
					t.Errorf("an entry of %d bytes at %v", len(e.Content), e.Time)
				}
				got = append(got, e.Content...)
				if !e.Partial {
					got = append(got, '\n')
				}
				return nil
			})
			if err != nil || !bytes.Equal(got, all) {
				t.Errorf("%d bytes were written and %d are in the log, %v", len(all), len(got), err)
			}
			if cap(w.entries) > 4*batchSize {
				t.Errorf("%d bytes are held for entries", cap(w.entries))
			}
			files, err := filepath.Glob(path + "*")
			for _, file := range files {
				st, statErr := os.Stat(file)
				if statErr != nil || st.Size() > 1<<20 {
					t.Errorf("%s: %v, %v", file, st, statErr)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// BenchmarkLog is a storm of output on its way from a pipe into a log, as
// fast as it can be taken.
func BenchmarkLog(b *testing.B) {
	for _, width := range []int{1, 8, 80, 1000} {
		lines := []byte(strings.Repeat(strings.Repeat("x", width-1)+"\n", max(1, (256<<10)/width)))
		b.Run(fmt.Sprintf("%d-byte lines", width), func(b *testing.B) {
			log, err := openLog(filepath.Join(b.TempDir(), "log"), 100<<20, 2)
			if err != nil {
				b.Fatal(err)
			}
			from, to, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			defer from.Close()
			b.SetBytes(int64(len(lines)))
			b.ReportAllocs()
			done := make(chan struct{})
			go func() {
				defer close(done)
				(&output{log: log}).copy("stdout", from)
			}()
			for b.Loop() {
				if _, err := to.Write(lines); err != nil {
					b.Fatal(err)
				}
			}
			to.Close()
			<-done
			b.ReportMetric(float64(len(lines)/width)*float64(b.N)/float64(b.Elapsed().Milliseconds()), "lines/ms")
			if err := log.close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkEntries is what of that is not the kernel's: lines become entries.
func BenchmarkEntries(b *testing.B) {
	for _, width := range []int{1, 8, 80, 1000} {
		lines := []byte(strings.Repeat(strings.Repeat("x", width-1)+"\n", readSize/width))
		b.Run(fmt.Sprintf("%d-byte lines", width), func(b *testing.B) {
			w := &lineWriter{log: &logFile{}, stream: "stdout"} // one that writes nowhere
			b.SetBytes(int64(len(lines)))
			b.ReportAllocs()
			for b.Loop() {
				w.write(lines)
			}
			b.ReportMetric(float64(len(lines)/width)*float64(b.N)/float64(b.Elapsed().Milliseconds()), "lines/ms")
		})
	}
}
