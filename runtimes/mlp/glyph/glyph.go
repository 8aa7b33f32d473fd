// Package glyph draws digits: 28×28 images in MNIST's manner, from the
// outlines of the Go fonts under random affine changes, with noise.
//
// It lets a demo train without a download. The package knows nothing of
// networks or files.
package glyph

import (
	"fmt"
	"image"
	"image/draw"
	"math"
	"math/rand/v2"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/gobolditalic"
	"golang.org/x/image/font/gofont/goitalic"
	"golang.org/x/image/font/gofont/gomedium"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/gofont/gomonobold"
	"golang.org/x/image/font/gofont/gomonoitalic"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/gofont/gosmallcaps"
	"golang.org/x/image/font/sfnt"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
)

// Side is the height and width of an image in pixels.
const Side = 28

// Difficulty bounds the random changes. The zero value draws clean, upright,
// centred digits.
type Difficulty struct {
	Rotate float64 // radians either way
	Shear  float64 // either way
	Scale  float64 // share of the size either way
	Shift  float64 // pixels either way
	Fade   float64 // share of the ink's brightness that may be lost
	Noise  float64 // standard deviation of the noise on touched pixels, of 255
	Specks int     // background pixels touched in each image, at most
}

// Default is hard enough that a network has something to learn and no harder:
// the default network passes 0.98 on held-out digits.
var Default = Difficulty{Rotate: 0.35, Shear: 0.3, Scale: 0.22, Shift: 2.5, Fade: 0.5, Noise: 40, Specks: 60}

// outline is a digit's contours around the origin, one unit high, y down.
type outline []sfnt.Segment

// Drawer draws digits. It is not safe for concurrent use.
type Drawer struct {
	digits [][10]outline // by face
	diff   Difficulty
	raster *vector.Rasterizer
	mask   *image.Alpha
}

// New returns a Drawer; the error is that of a font that does not parse.
func New(diff Difficulty) (*Drawer, error) {
	d := &Drawer{diff: diff, raster: vector.NewRasterizer(Side, Side), mask: image.NewAlpha(image.Rect(0, 0, Side, Side))}
	for _, ttf := range [][]byte{
		goregular.TTF, gomedium.TTF, gobold.TTF, goitalic.TTF, gobolditalic.TTF,
		gomono.TTF, gomonobold.TTF, gomonoitalic.TTF, gosmallcaps.TTF,
	} {
		face, err := parse(ttf)
		if err != nil {
			return nil, fmt.Errorf("read Go font: %w", err)
		}
		d.digits = append(d.digits, face)
	}
	return d, nil
}

// unit is the size at which outlines are read, in font pixels; they are scaled
// from there in floating point.
const unit = 1000

func parse(ttf []byte) (digits [10]outline, err error) {
	f, err := sfnt.Parse(ttf)
	if err != nil {
		return digits, err
	}
	var buf sfnt.Buffer
	for i := range digits {
		idx, err := f.GlyphIndex(&buf, rune('0'+i))
		if err != nil {
			return digits, err
		}
		// LoadGlyph returns memory of buf, which the next call overwrites.
		segs, err := f.LoadGlyph(&buf, idx, fixed.I(unit), &sfnt.LoadGlyphOptions{})
		if err != nil {
			return digits, err
		}
		digits[i] = append(outline(nil), segs...)
		bounds, _, err := f.GlyphBounds(&buf, idx, fixed.I(unit), font.HintingNone)
		if err != nil {
			return digits, err
		}
		centre := bounds.Min.Add(bounds.Max).Div(fixed.I(2))
		for s := range digits[i] {
			for a := range digits[i][s].Args {
				digits[i][s].Args[a] = digits[i][s].Args[a].Sub(centre)
			}
		}
	}
	return digits, nil
}

// Set draws n digits, classes in equal shares, all from seed: the same seed
// gives the same bytes.
func (d *Drawer) Set(n int, seed uint64) *dataset.Set {
	rng := rand.New(rand.NewPCG(seed, 0xd161))
	pixels := make([]byte, n*Side*Side)
	labels := make([]int, n)
	for i := range labels {
		labels[i] = i % 10
	}
	rng.Shuffle(n, func(i, j int) { labels[i], labels[j] = labels[j], labels[i] })
	for i, digit := range labels {
		d.Draw(rng, digit, pixels[i*Side*Side:(i+1)*Side*Side])
	}
	return dataset.FromBytes(pixels, Side, Side, labels)
}

// Draw draws one digit, 0 to 9, into dst, Side·Side bytes, white on black.
func (d *Drawer) Draw(rng *rand.Rand, digit int, dst []byte) {
	o := d.digits[rng.IntN(len(d.digits))][digit]
	d.trace(o, d.transform(rng))
	d.raster.Draw(d.mask, d.mask.Bounds(), image.Opaque, image.Point{})
	ink := 1 - d.diff.Fade*rng.Float64()
	for i, a := range d.mask.Pix {
		v := float64(a) * ink
		if a > 0 {
			v += d.diff.Noise * rng.NormFloat64()
		}
		dst[i] = clamp(v)
	}
	if d.diff.Specks == 0 {
		return
	}
	for range rng.IntN(d.diff.Specks + 1) {
		i := rng.IntN(len(dst))
		dst[i] = clamp(float64(dst[i]) + math.Abs(2*d.diff.Noise*rng.NormFloat64()))
	}
}

// transform draws a random affine map from font units to pixels:
// scale · shear · rotation, then a shift to the middle of the image.
func (d *Drawer) transform(rng *rand.Rand) func(fixed.Point26_6) (x, y float32) {
	both := func(limit float64) float64 { return limit * (2*rng.Float64() - 1) }
	const fill = 0.98 * Side / (64 * unit) // digits are 0.72 of a font unit high: 20 pixels, as in MNIST
	angle, shear := both(d.diff.Rotate), both(d.diff.Shear)
	sx, sy := fill*(1+both(d.diff.Scale)), fill*(1+both(d.diff.Scale))
	dx, dy := Side/2+both(d.diff.Shift), Side/2+both(d.diff.Shift)
	sin, cos := math.Sincos(angle)
	return func(p fixed.Point26_6) (float32, float32) {
		x, y := float64(p.X)+shear*float64(p.Y), float64(p.Y)
		x, y = sx*(cos*x-sin*y)+dx, sy*(sin*x+cos*y)+dy
		return float32(x), float32(y)
	}
}

func (d *Drawer) trace(o outline, at func(fixed.Point26_6) (x, y float32)) {
	d.raster.Reset(Side, Side)
	d.raster.DrawOp = draw.Src // Reset sets it to Over
	for _, s := range o {
		ax, ay := at(s.Args[0])
		bx, by := at(s.Args[1])
		cx, cy := at(s.Args[2])
		switch s.Op {
		case sfnt.SegmentOpMoveTo:
			d.raster.ClosePath()
			d.raster.MoveTo(ax, ay)
		case sfnt.SegmentOpLineTo:
			d.raster.LineTo(ax, ay)
		case sfnt.SegmentOpQuadTo:
			d.raster.QuadTo(ax, ay, bx, by)
		case sfnt.SegmentOpCubeTo:
			d.raster.CubeTo(ax, ay, bx, by, cx, cy)
		}
	}
	d.raster.ClosePath()
}

func clamp(v float64) byte { return byte(max(0, min(255, v))) }

// Text draws an image of the given width as lines of characters. A line stands
// for two rows of pixels, because a terminal's characters are twice as high as
// wide. Pixels run from 0 to 255.
func Text(pixels []byte, width int) []string {
	const shades = " .:-=+*#%@"
	var lines []string
	for len(pixels) >= width {
		top, bottom := pixels[:width], pixels[:width]
		if pixels = pixels[width:]; len(pixels) >= width {
			bottom, pixels = pixels[:width], pixels[width:]
		}
		line := make([]byte, width)
		for i := range line {
			line[i] = shades[(int(top[i])+int(bottom[i]))*len(shades)/512]
		}
		lines = append(lines, string(line))
	}
	return lines
}
