// SPDX-License-Identifier: Apache-2.0

package input

import (
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Attend lets queries attend as those of a layer of the model do: with its scale, its soft cap and its
// window. Queries of a layer with a window have positions.
func Attend(q *backend.Queries, g *quant.Geometry, layer int) *backend.Queries {
	q.Scale, q.Softcap = float32(g.ScaleOf(layer)), float32(g.SoftcapOf(layer))
	q.Window = g.WindowOf(layer)
	return q
}

// Outside returns how many of the first n tokens of a layer no query behind them can see.
func (in *Data) Outside(l *Layer, n int) int { return int(in.Geo.Outside(l.Number, int64(n))) }

// SeenSpan returns the tokens [first, first+n) of a segment that a query behind all tokens can see.
func (in *Data) SeenSpan(l *Layer, segment int) (first, n int) {
	first, n = l.Span(segment)
	gone := min(max(in.Outside(l, l.Tokens)-first, 0), n)
	return first + gone, n - gone
}

// SeenValues returns the number of values of all rows that a query behind all tokens can see.
func (in *Data) SeenValues() int64 {
	var n int64
	for i := range in.Layers {
		l := &in.Layers[i]
		n += int64(l.Heads) * int64(l.Tokens-in.Outside(l, l.Tokens)) * int64(l.Dims())
	}
	return n
}

// FutureFrom returns the token from which on queries of a layer play the future: those of the last
// quarter. In a layer whose window is shorter than the context they are of half a window at most, so
// that each of them sees a good part of the rows before it.
func FutureFrom(g *quant.Geometry, l *Layer) int {
	span := l.Tokens - l.Past()
	if w := g.WindowOf(l.Number); w > 0 && w < int64(l.Tokens) {
		span = min(span, int(max(1, w/2)))
	}
	return l.Tokens - span
}
