// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// table shows a backend the blocks of one segment in a layer, for calls that read it alone: the sums of
// Relevance have a place for every block of a table.
type table struct {
	t backend.Table
	n int
}

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
