// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"image/color"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/kvist-project/kvist/bench/quality"
)

// pictureFile is the picture of the README.
const pictureFile = "headline.svg"

// line is a line of the picture: the methods whose names have a prefix and a suffix.
type line struct {
	label, prefix, suffix string
	colour                color.RGBA // from Okabe and Ito (2008): readable with most colour blindness
	width                 vg.Length
	labelFirst            bool // left of the first point, otherwise right of the last
}

// lines are the lines of the picture. The suffix tells archives with a profile from those without,
// and TurboQuant with sinks from plain TurboQuant.
var lines = []line{
	{"kvist archive", "kvist-archive:", archiveProfile, color.RGBA{0xd5, 0x5e, 0x00, 0xff}, 2.5, false},
	{"kvist hot", "kvist:", "", color.RGBA{0x00, 0x72, 0xb2, 0xff}, 2.5, false},
	{"TurboQuant-mse", "tqmse", ":sinks=4", color.RGBA{0x00, 0x9e, 0x73, 0xff}, 1, true},
	{"KIVI", "kivi", "", color.RGBA{0xcc, 0x79, 0xa7, 0xff}, 1, false},
	{"SnapKV", "snapkv:", "%", color.RGBA{0x55, 0x55, 0x55, 0xff}, 1, false},
}

// points returns the methods of a line by size.
func (l line) points(res *quality.Results) plotter.XYs {
	var out plotter.XYs
	for i := range res.Methods {
		m := &res.Methods[i]
		rest, ok := strings.CutPrefix(m.Name, l.prefix)
		rest, ok2 := strings.CutSuffix(rest, l.suffix)
		// What is left is the rate. Methods with further options have lines of their own.
		if _, err := strconv.ParseFloat(rest, 64); ok && ok2 && err == nil {
			out = append(out, plotter.XY{X: m.BitsPerValue, Y: m.KL.Mean})
		}
	}
	slices.SortFunc(out, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
	return out
}

// draw adds the line, its points and its label to a plot.
func (l line) draw(p *plot.Plot, res *quality.Results) error {
	xy := l.points(res)
	curve, points, err := plotter.NewLinePoints(xy)
	if err != nil {
		return err
	}
	curve.Color, curve.Width = l.colour, l.width
	points.Color, points.Radius, points.Shape = l.colour, vg.Points(2.5), draw.CircleGlyph{}
	at, offset, align := xy[len(xy)-1], vg.Points(6), draw.XLeft
	if l.labelFirst {
		at, offset, align = xy[0], -offset, draw.XRight
	}
	label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{at}, Labels: []string{l.label}})
	if err != nil {
		return err
	}
	label.Offset.X = offset
	label.TextStyle[0].Color = l.colour
	label.TextStyle[0].XAlign, label.TextStyle[0].YAlign = align, draw.YCenter
	p.Add(curve, points, label)
	return nil
}

// picture draws KL divergence, on a logarithmic scale, against bits per value as SVG.
func picture(res *quality.Results) (string, error) {
	p := plot.New()
	p.X.Label.Text = "bits per value, all stored bytes counted"
	p.Y.Label.Text = "KL divergence, nats"
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	var ticks plot.ConstantTicks
	for b := range 9 {
		ticks = append(ticks, plot.Tick{Value: float64(b), Label: strconv.Itoa(b)})
	}
	p.X.Tick.Marker = ticks
	p.Add(plotter.NewGrid())
	for _, l := range lines {
		if err := l.draw(p, res); err != nil {
			return "", fmt.Errorf("plot %s: %w", l.label, err)
		}
	}
	p.X.Min, p.X.Max = 0, 9
	p.Y.Min, p.Y.Max = 1e-5, 1
	const margin = 3 * vg.Millimeter
	canvas := vgsvg.New(18*vg.Centimeter, 10*vg.Centimeter)
	p.Draw(draw.Crop(draw.New(canvas), margin, -margin, margin, -margin))
	var b strings.Builder
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("write plot: %w", err)
	}
	return b.String(), nil
}
