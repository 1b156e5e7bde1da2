// SPDX-License-Identifier: Apache-2.0

package input

import (
	"fmt"

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

// Fewer returns about n of the queries, evenly spread, without their blocks, and which they are: nil for all.
func Fewer(q *backend.Queries, n int) (some *backend.Queries, at []int) {
	if q.Len() <= n {
		return q, nil
	}
	all := *q
	some = &all
	some.Q, some.Pos, some.BlockPtr, some.BlockIdx = nil, nil, []int32{0}, nil
	in := q.Group * q.HeadDim
	for i := range n {
		k := i * q.Len() / n
		at = append(at, k)
		some.Q = append(some.Q, q.Q[k*in:(k+1)*in]...)
		some.Pos, some.BlockPtr = append(some.Pos, q.Pos[k]), append(some.BlockPtr, 0)
	}
	return some, at
}

// Outside returns how many of the first n tokens of a layer no query behind them can see.
func (in *Data) Outside(l *Layer, n int) int { return int(in.Geo.Outside(l.Number, int64(n))) }

// CheckPositions refuses a cache with windows whose positions do not count up by one. Compression counts a window
// in tokens; where positions have gaps, a window in positions holds fewer tokens.
//
// Errors: quant.ErrUnsupported; those of Positions.
func (in *Data) CheckPositions() error {
	if !in.Geo.Windowed() || len(in.Layers) == 0 {
		return nil
	}
	pos := make([]int64, min(in.Layers[0].Tokens, 1<<16))
	var last int64
	for first := 0; first < in.Layers[0].Tokens; first += len(pos) {
		pos = pos[:min(len(pos), in.Layers[0].Tokens-first)]
		if err := in.Positions(first, pos); err != nil {
			return err
		}
		for i, p := range pos {
			if t := first + i; t > 0 && p != last+1 {
				return fmt.Errorf("kvist/input: %s: positions %d and %d of tokens %d and %d, in a model whose layers "+
					"have windows: positions that do not count up by one are not supported: %w", in.Name, last, p,
					t-1, t, quant.ErrUnsupported)
			}
			last = p
		}
	}
	return nil
}

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
