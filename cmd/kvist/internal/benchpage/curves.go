// SPDX-License-Identifier: Apache-2.0

package benchpage

import (
	"fmt"
	"html/template"
	"math"
	"strings"

	"github.com/kvist-project/kvist/bench/perf"
)

// curves is a plot of time against context.
type curves struct {
	Title string
	SVG   template.HTML
}

// The plot, in units of a narrow screen's pixels, so that its text has the size of the page's.
const (
	width, height = 360.0, 220.0
	left, right   = 44.0, 12.0
	top, bottom   = 10.0, 30.0
)

// strokes are the colours of the codings in the style sheet.
var strokes = map[string]string{"f16": "#7f8c8a", "g1": "#c98a3a", "g2": "#e4bd86", "k1": "#0f4a43", "k2": "#1b6b62",
	"k3": "#3f9a8d", "k4": "#84c2b7"}

// line is a coding's times by context.
type line struct {
	coding perf.Coding
	at     []int
	ns     []float64
}

// drawCurves draws a shape, if it was measured at two contexts or more. Both axes are logarithmic.
func drawCurves(r *perf.Record, s perf.Shape) []curves {
	var lines []line
	contexts := r.Contexts(s)
	if len(contexts) < 2 {
		return nil
	}
	low, high := math.Inf(1), 0.0
	for _, c := range perf.Codings() {
		l := line{coding: c}
		for _, n := range contexts {
			if x := r.Find(perf.AttendName(s, c, n, r.Threads)); x != nil {
				t := x.Time().Median
				l.at, l.ns = append(l.at, n), append(l.ns, t)
				low, high = min(low, t), max(high, t)
			}
		}
		lines = append(lines, l)
	}
	ticks := ticksOf(low, high)
	low, high = ticks[0], ticks[len(ticks)-1]
	x := func(n int) float64 {
		first, last := math.Log(float64(contexts[0])), math.Log(float64(contexts[len(contexts)-1]))
		return left + (width-left-right)*(math.Log(float64(n))-first)/(last-first)
	}
	y := func(t float64) float64 {
		return height - bottom - (height-top-bottom)*(math.Log(t/low))/(math.Log(high/low))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="time against context">`, width, height)
	for i, v := range ticks {
		fmt.Fprintf(&b, `<path class="axis" d="M%g %.1fH%g"/>`, left, y(v), width-right)
		if len(ticks) < 8 || i%2 == 0 {
			fmt.Fprintf(&b, `<text x="%g" y="%.1f" text-anchor="end">%s</text>`, left-6, y(v)+4, tickText(v))
		}
	}
	for i, n := range contexts {
		anchor := "middle"
		if i == len(contexts)-1 {
			anchor = "end"
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%g" text-anchor="%s">%s</text>`, x(n), height-10, anchor, perf.TokensText(int64(n)))
	}
	for _, l := range lines {
		if len(l.at) == 0 {
			continue
		}
		var path strings.Builder
		for i := range l.at {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x(l.at[i]), y(l.ns[i]))
		}
		colour := strokes[class(l.coding)]
		fmt.Fprintf(&b, `<path fill="none" stroke="%s" stroke-width="2" d="%s"/>`, colour, path.String())
		for i := range l.at {
			fmt.Fprintf(&b, `<circle r="3" fill="%s" cx="%.1f" cy="%.1f"><title>%s at %s: %s ns</title></circle>`, colour, x(l.at[i]), y(l.ns[i]),
				l.coding, perf.TokensText(int64(l.at[i])), perf.Digits(l.ns[i]))
		}
	}
	b.WriteString("</svg>")
	return []curves{{shapeTitle(s), template.HTML(b.String())}} //nolint:gosec // numbers and our own names
}

// ticksOf are the numbers 1, 2 and 5 times a power of ten around a range, two at least.
func ticksOf(low, high float64) (out []float64) {
	for e := math.Floor(math.Log10(low)); len(out) < 2 || out[len(out)-1] < high; e++ {
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			switch {
			case len(out) == 1 && v <= low:
				out[0] = v
			case len(out) < 2 || out[len(out)-1] < high:
				out = append(out, v)
			}
		}
	}
	return out
}

// tickText shows nanoseconds without digits behind those that are there.
func tickText(ns float64) string {
	if ns >= 1000 {
		return fmt.Sprintf("%g us", math.Round(ns)/1000)
	}
	return fmt.Sprintf("%g ns", float64(float32(ns)))
}
