// SPDX-License-Identifier: Apache-2.0

package llamastate

import (
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// layout joins the caches of a state to one context: tokens by position, layers by the model's number.
type layout struct {
	geo      quant.Geometry // windows are those that llama.cpp knows
	tokens   []int32        // positions, ascending
	layers   []place        // [geo.Layers]
	rotary   int            // components of K that are in another order, 0 for none
	turn     sizes
	k, v     *elem
	uneven   bool // positions do not count up by one
	windowed bool // the second cache is that of layers with a window
}

// place is where a layer of the model stands.
type place struct {
	s *stream
	*layer
}

// newLayout checks that a state is that of one sequence of the model.
//
// Errors: quant.ErrShape where the model does not fit; quant.ErrUnsupported; quant.ErrCorrupt.
func newLayout(s *state, f Facts) (*layout, error) {
	l := &layout{geo: f.Geometry}
	if err := l.geo.Validate(); err != nil {
		return nil, err
	}
	var streams []*stream
	for _, c := range s.caches {
		if len(c.streams) > 1 {
			return nil, unsupportedf("cells of %d sequences; save one sequence, or keep every bit, which needs no model",
				len(c.streams))
		}
		if len(c.streams) == 0 {
			c = &cache{streams: []*stream{{}}}
		}
		st := c.streams[0]
		if st.owners {
			return nil, unsupportedf("cells that several sequences share; save one sequence, or keep every bit, which " +
				"needs no model")
		}
		streams = append(streams, st)
	}
	if err := l.placeLayers(streams); err != nil {
		return nil, err
	}
	l.joinTokens(streams)
	return l, l.checkLayers(f)
}

// placeLayers tells which layer of the model stands where.
func (l *layout) placeLayers(streams []*stream) error {
	l.windowed = len(streams) == 2
	if !l.windowed && l.geo.Windowed() {
		// llama.cpp has one cache where it knows of no window, and then attends to all tokens.
		l.geo.PerLayer = slices.Clone(l.geo.PerLayer)
		for i := range l.geo.PerLayer {
			l.geo.PerLayer[i].Window = 0
		}
		l.geo = l.geo.Canonical()
	}
	var next [maxCaches]int
	for n := range l.geo.Layers {
		c := 0
		if l.windowed && l.geo.WindowOf(n) > 0 {
			c = 1
		}
		if next[c] >= len(streams[c].layers) {
			return l.layersError(streams)
		}
		l.layers = append(l.layers, place{streams[c], &streams[c].layers[next[c]]})
		next[c]++
	}
	for c, st := range streams {
		if next[c] != len(st.layers) {
			return l.layersError(streams)
		}
	}
	return nil
}

func (l *layout) layersError(streams []*stream) error {
	var have []int
	for _, st := range streams {
		have = append(have, len(st.layers))
	}
	windows := 0
	for n := range l.geo.Layers {
		if l.geo.WindowOf(n) > 0 {
			windows++
		}
	}
	return callErrorf("the state has caches of %d layers, the model has %d layers, %d of them with a window", have,
		l.geo.Layers, windows)
}

// joinTokens collects the positions of all caches.
func (l *layout) joinTokens(streams []*stream) {
	for _, st := range streams {
		l.tokens = append(l.tokens, st.pos...)
	}
	slices.Sort(l.tokens)
	l.tokens = slices.Compact(l.tokens)
	n := len(l.tokens)
	l.uneven = n > 0 && int64(l.tokens[n-1])-int64(l.tokens[0]) != int64(n-1)
}

// index returns the number of the token at a position, which is one of tokens.
func (l *layout) index(pos int32) int {
	if !l.uneven {
		return int(pos - l.tokens[0])
	}
	i, _ := slices.BinarySearch(l.tokens, pos)
	return i
}

// checkLayers checks widths, types and cells against the model.
func (l *layout) checkLayers(f Facts) error {
	g := l.geo
	for n, p := range l.layers {
		if p.k.width != g.KVHeads*g.HeadDim || p.v.width != g.KVHeads*g.HeadDimV {
			return callErrorf("layer %d: rows of %d and %d values, the model has %d and %d (%d kv_heads of %d and %d)", n,
				p.k.width, p.v.width, g.KVHeads*g.HeadDim, g.KVHeads*g.HeadDimV, g.KVHeads, g.HeadDim, g.HeadDimV)
		}
		if n == 0 {
			l.k, l.v = p.k.typ, p.v.typ
		} else if l.k != p.k.typ || l.v != p.v.typ {
			return unsupportedf("layer %d holds %s and %s, others %s and %s; want the same types in all layers", n,
				p.k.typ.name, p.v.typ.name, l.k.name, l.v.name)
		}
		if err := l.checkCells(n, p.s); err != nil {
			return err
		}
		if f.Interleaved {
			l.rotary = max(l.rotary, g.RopeOf(n).RotaryDim)
		}
	}
	if !f.Plain {
		l.turn = sizes{turnOfK(l.k, g.HeadDim), turnOfV(l.v, g.HeadDimV)}
	}
	return nil
}

// checkCells checks that every position is there once, but for those that no query behind the cells sees.
func (l *layout) checkCells(n int, s *stream) error {
	seen := make([]bool, len(l.tokens))
	for _, pos := range s.pos {
		i := l.index(pos)
		if seen[i] {
			return unsupportedf("two cells of layer %d at position %d; want one sequence, one cell for each token", n, pos)
		}
		seen[i] = true
	}
	for i := l.outside(n); i < len(seen); i++ {
		if !seen[i] {
			return unsupportedf("layer %d has no cell at position %d, which later tokens see: the state is a part of one",
				n, l.tokens[i])
		}
	}
	return nil
}

// outside returns how many of the first tokens no query behind the cells can see in a layer. Windows count
// positions.
func (l *layout) outside(n int) int {
	w := l.geo.WindowOf(n)
	if w == 0 || len(l.tokens) == 0 {
		return 0
	}
	from := int64(l.tokens[len(l.tokens)-1]) + 2 - w
	i, _ := slices.BinarySearchFunc(l.tokens, from, func(pos int32, from int64) int {
		switch {
		case int64(pos) < from:
			return -1
		case int64(pos) > from:
			return 1
		}
		return 0
	})
	return i
}

// edge returns the cell of a layer that only the last token of the state sees, and none behind it; -1 where there is
// none. A server that evaluates the last token again needs it.
func (l *layout) edge(n int) int {
	i := l.outside(n) - 1
	if i < 0 {
		return -1
	}
	return slices.Index(l.layers[n].s.pos, l.tokens[i])
}
