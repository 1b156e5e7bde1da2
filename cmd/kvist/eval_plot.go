// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"image/color"
	"io"
	"math"
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

// The plot shows what is compressed: f16 would push all else into a corner.
const (
	plotMaxBits = 9
	plotMinKL   = 1e-6
)

// evalColours tell families apart, also for most colour-blind eyes (Okabe and Ito, 2008), then
// again with dashes and other marks. The first is kvist's.
var evalColours = []color.RGBA{
	{0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x72, 0xb2, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79,
		0xa7, 0xff},
	{0x56, 0xb4, 0xe9, 0xff}, {0xe6, 0x9f, 0x00, 0xff}, {0x55, 0x55, 0x55, 0xff},
}

// evalShapes are the marks of points. When all colours are used, they begin again with the next shape.
var evalShapes = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.PyramidGlyph{},
	draw.RingGlyph{}}

// curve is one family, by bits a value.
type curve struct {
	family string
	points plotter.XYs
}

// curves sorts the methods that the plot shows by family: kvist first, then as measured.
func curves(res *quality.Results) []curve {
	var out []curve
	at := map[string]int{}
	for i := range res.Methods {
		m := &res.Methods[i]
		if m.BitsPerValue > plotMaxBits || m.KL.Mean < plotMinKL {
			continue
		}
		j, ok := at[m.Family]
		if !ok {
			j = len(out)
			at[m.Family] = j
			out = append(out, curve{family: m.Family})
		}
		out[j].points = append(out[j].points, plotter.XY{X: m.BitsPerValue, Y: m.KL.Mean})
	}
	for i := range out {
		slices.SortFunc(out[i].points, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
	}
	slices.SortStableFunc(out, func(a, b curve) int {
		return cmp.Compare(isKvist(b.family), isKvist(a.family))
	})
	return out
}

func isKvist(family string) int {
	if strings.HasPrefix(family, "kvist") {
		return 1
	}
	return 0
}

// plotKL draws divergence, on a logarithmic scale, against bits a value as SVG.
func plotKL(w io.Writer, res *quality.Results) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%s: damage against size", res.Model)
	p.X.Label.Text = "bits a value, all bytes counted"
	p.Y.Label.Text = "KL divergence of next-token distributions, nats"
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Top = true
	p.Legend.TextStyle.Font.Size = vg.Points(9)
	ticks := plot.ConstantTicks{}
	for b := range plotMaxBits + 1 {
		ticks = append(ticks, plot.Tick{Value: float64(b), Label: strconv.Itoa(b)})
	}
	p.X.Tick.Marker = ticks
	p.Add(plotter.NewGrid())
	list := curves(res)
	low, high := math.Inf(1), 0.0
	for i, c := range list {
		line, points, err := plotter.NewLinePoints(c.points)
		if err != nil {
			return fmt.Errorf("plot %s: %w", c.family, err)
		}
		line.Color = evalColours[i%len(evalColours)]
		line.Width = vg.Points(1)
		if isKvist(c.family) > 0 {
			line.Width = vg.Points(2.5)
		}
		if n := i / len(evalColours); n > 0 {
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(2 * float64(n))}
		}
		points.Color, points.Radius = line.Color, vg.Points(2.5)
		points.Shape = evalShapes[i/len(evalColours)%len(evalShapes)]
		p.Add(line, points)
		p.Legend.Add(c.family, line, points)
		for _, q := range c.points {
			low, high = min(low, q.Y), max(high, q.Y)
		}
	}
	if len(list) == 0 { // nothing to show is not a reason to fail: the axes need a range
		low, high = 1e-4, 1
	}
	p.X.Min, p.X.Max = 0, plotMaxBits
	p.Y.Min = math.Pow(10, math.Floor(math.Log10(low)))
	p.Y.Max = math.Max(math.Pow(10, math.Ceil(math.Log10(high))), 10*p.Y.Min)
	const width, height = 24 * vg.Centimeter, 16 * vg.Centimeter
	canvas := vgsvg.New(width, height)
	p.Draw(draw.New(canvas))
	if _, err := canvas.WriteTo(w); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return nil
}

//go:embed eval_page.html
var evalPageText string

// evalPage writes one page that needs nothing else: tables, plot, sources.
func evalPage(w io.Writer, res *quality.Results) error {
	t, err := template.New("page").Parse(evalPageText)
	if err != nil {
		return err
	}
	var svg strings.Builder
	if err := plotKL(&svg, res); err != nil {
		return err
	}
	// The XML declaration does not belong into HTML.
	_, picture, _ := strings.Cut(svg.String(), "<svg")
	type tableData struct {
		Headers []string
		Rows    [][]string
	}
	data := struct {
		*quality.Results
		SVG          template.HTML
		Main, Paired tableData
	}{res, template.HTML("<svg" + picture), //nolint:gosec // drawn above; texts are escaped there
		tableData{res.Headers(), res.Table()}, tableData{res.PairHeaders(), res.PairTable()}}
	if err := t.Execute(w, data); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}
