package runner_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// buffer is a stream whose other end is closed.
type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// FuzzConn: whatever comes over the socket is a frame or an error.
func FuzzConn(f *testing.F) {
	for _, seed := range []string{"R\x00\x00\x00\x1d{\"version\":1,\"op\":\"hello\"}", "", "R", "1\x00\x00\x00\x00", "R\xff\xff\xff\xff", "R\x00\x00\x00\x05null",
		"R\x00\x00\x00\x02{}", "V\x00\x00\x00\x03abcR\x00\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in buffer
		in.Write(data)
		if r, err := runner.NewConn(&in).ReadRequest(); err == nil && r.Version != 1 {
			t.Errorf("version %d is taken", r.Version)
		}
		in.Reset()
		in.Write(data)
		conn, read := runner.NewConn(&in), 0
		for {
			_, payload, err := conn.Read()
			if err != nil {
				if err == io.EOF && read != len(data) {
					t.Errorf("the end after %d of %d bytes", read, len(data))
				}
				break
			}
			read += 5 + len(payload)
		}
		var out buffer
		if err := runner.NewConn(&out).Write('1', data); err != nil {
			t.Fatal(err)
		}
		kind, payload, err := runner.NewConn(&out).Read()
		if err != nil || kind != '1' || !bytes.Equal(payload, data) {
			t.Errorf("back again: %c, %q, %v", kind, payload, err)
		}
	})
}
