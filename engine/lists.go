// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// lists are the queries of a round and the blocks that they attend to, as a backend reads them.
type lists struct {
	q      backend.Queries
	blocks []backend.Block // that are set together
	pos    []int64
	ptr    []int32
	idx    []int32
	lse    []float32
	x, out []float32 // in the order of heads, if a row has many tokens
}

func (l *lists) growth(d *demand, g quant.Geometry) int64 {
	group := g.GQARatio()
	n := more(l.blocks, d.run) + more(l.pos, d.queries) + more(l.ptr, d.queries+1) + more(l.idx, d.index) +
		more(l.lse, d.queries*group)
	if d.permuted {
		n += more(l.x, d.queries*group*g.HeadDim) + more(l.out, d.queries*group*g.HeadDimV)
	}
	return n
}

func (l *lists) grow(led *ledger, d *demand, g quant.Geometry) error {
	var e [7]error
	group := g.GQARatio()
	l.blocks, e[0] = fit(led, l.blocks, d.run)
	l.pos, e[1] = fit(led, l.pos, d.queries)
	l.ptr, e[2] = fit(led, l.ptr, d.queries+1)
	l.idx, e[3] = fit(led, l.idx, d.index)
	l.lse, e[4] = fit(led, l.lse, d.queries*group)
	if d.permuted {
		l.x, e[5] = fit(led, l.x, d.queries*group*g.HeadDim)
		l.out, e[6] = fit(led, l.out, d.queries*group*g.HeadDimV)
	}
	for _, err := range e {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *lists) drop(led *ledger) {
	l.blocks, l.pos = dropped(led, forScratch, l.blocks), dropped(led, forScratch, l.pos)
	l.ptr, l.idx = dropped(led, forScratch, l.ptr), dropped(led, forScratch, l.idx)
	l.lse, l.x = dropped(led, forScratch, l.lse), dropped(led, forScratch, l.x)
	l.out = dropped(led, forScratch, l.out)
}
