package glyph

import (
	"bytes"
	"strings"
	"testing"
)

func drawSet(t testing.TB, diff Difficulty, n int, seed uint64) ([]byte, []int) {
	t.Helper()
	d, err := New(diff)
	if err != nil {
		t.Fatal(err)
	}
	s := d.Set(n, seed)
	out := make([]byte, 0, n*Side*Side)
	row := make([]float32, s.Features)
	for i := range n {
		s.Row(i, row)
		for _, v := range row {
			out = append(out, byte(v*255+0.5))
		}
	}
	return out, s.Labels
}

func TestSeed(t *testing.T) {
	a, la := drawSet(t, Default, 50, 7)
	b, lb := drawSet(t, Default, 50, 7)
	if !bytes.Equal(a, b) || la[3] != lb[3] {
		t.Error("the same seed drew different digits")
	}
	c, _ := drawSet(t, Default, 50, 8)
	if bytes.Equal(a, c) {
		t.Error("another seed drew the same digits")
	}
}

// TestShares checks that classes come in equal shares and that every image
// holds ink and background.
func TestShares(t *testing.T) {
	pixels, labels := drawSet(t, Default, 200, 1)
	var count [10]int
	for i, l := range labels {
		count[l]++
		ink := 0
		for _, p := range pixels[i*Side*Side : (i+1)*Side*Side] {
			if p > 60 {
				ink++
			}
		}
		if ink < 20 || ink > Side*Side/2 {
			t.Errorf("digit %d has %d bright pixels", l, ink)
		}
	}
	for digit, n := range count {
		if n != 20 {
			t.Errorf("digit %d was drawn %d times of 200", digit, n)
		}
	}
}

// TestClean checks the geometry: a digit without changes is centred and 20
// pixels high.
func TestClean(t *testing.T) {
	pixels, labels := drawSet(t, Difficulty{}, 40, 1)
	for i, l := range labels {
		img := pixels[i*Side*Side : (i+1)*Side*Side]
		top, bottom := Side, 0
		for p, v := range img {
			if v > 100 {
				top, bottom = min(top, p/Side), max(bottom, p/Side)
			}
		}
		if h := bottom - top + 1; h < 16 || h > 23 || top < 2 || bottom > Side-3 {
			t.Errorf("digit %d covers rows %d to %d\n%s", l, top, bottom, strings.Join(Text(img, Side), "\n"))
		}
	}
}

func BenchmarkSet(b *testing.B) {
	d, err := New(Default)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		d.Set(100, uint64(n))
		n += 100
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "digits/s")
}
