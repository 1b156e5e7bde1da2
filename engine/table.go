// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// table shows a backend the blocks of one call.
//
// Its blocks are set anew for every call, one layer at a time. A table that is resident for all layers
// would spare that work. But what a backend keeps of a block is about as large as 32 rows of K and V at
// 1 bit, and would come out of the same budget.
type table struct {
	t backend.Table
	n int
}

// shownBytes is what a backend is taken to keep of a block while a call sees it.
const shownBytes = 512

// view returns a view of the blocks. It is good until the next call of view or hide.
func (t *table) view(be backend.Backend, g quant.Geometry, blocks []backend.Block) (backend.View, error) {
	if t.t == nil {
		made, err := be.NewTable(backend.Shape{HeadDim: g.HeadDim, HeadDimV: g.HeadDimV})
		if err != nil {
			return nil, err
		}
		t.t = made
	}
	if err := t.hide(); err != nil {
		return nil, err
	}
	if err := t.t.Set(0, blocks...); err != nil {
		return nil, err
	}
	t.n = len(blocks)
	return t.t.View()
}

// hide empties the table, so that it does not hold on to memory that is freed.
func (t *table) hide() error {
	n := t.n
	if n == 0 {
		return nil
	}
	t.n = 0
	return t.t.Remove(0, n)
}

// close frees the table.
func (t *table) close() error {
	if t.t == nil {
		return nil
	}
	err := t.t.Close()
	t.t, t.n = nil, 0
	return err
}
