// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// relFor returns a RelevanceOut for the rows of blocks; every sum starts at start.
func relFor(blocks []known, power int, start float32) *backend.RelevanceOut {
	rel := &backend.RelevanceOut{Power: power, RowPtr: []int32{0}}
	for _, b := range blocks {
		rel.RowPtr = append(rel.RowPtr, rel.RowPtr[len(rel.RowPtr)-1]+int32(b.rows))
		for range b.rows {
			rel.Sum = append(rel.Sum, start)
		}
	}
	return rel
}

// attended draws a mixture, places it in the backend and computes the log-sum-exps of its queries.
func attended(t *testing.T, b backend.Backend, n uint64) (a *arena, m mixture, lse []float32) {
	a = newArena(t, b)
	m = drawMixture(a, b, 5000+n)
	a.upload()
	_, lse = attend(t, b, m.q, m.blocks)
	return a, m, lse
}

func testRelevance(t *testing.T, b backend.Backend) {
	for n := range mixtures() {
		t.Run(fmt.Sprintf("case=%d", n), func(t *testing.T) {
			a, m, lse := attended(t, b, n)
			defer a.free()
			hs := handles(m.blocks)
			if n%3 == 0 {
				for i := range hs { // Relevance does not read V
					hs[i].V = backend.Side{}
				}
			}
			var total float64
			for power := 1; power <= 2; power++ {
				rel := relFor(m.blocks, power, 0.25)
				require.NoError(t, backend.RelevanceBlocks(context.Background(), b, m.q, ropeOf(m.blocks), lse, hs, rel))
				checkRelevance(t, m.q, lse, m.blocks, rel, 0.25, fmt.Sprintf("power=%d", power))
				if power == 1 {
					for _, x := range rel.Sum {
						total += float64(x) - 0.25
					}
				}
			}
			a.unchanged()
			// The probabilities of a head that sees a row add up to 1.
			want := 0.0
			for _, l := range lse {
				if l > -1e30 {
					want++
				}
			}
			require.InDelta(t, want, total, 1e-3*(1+want))
		})
	}
}

// testWeigh compares a Weigher with the reference of Relevance.
func testWeigh(t *testing.T, b backend.Backend) {
	w, ok := b.(backend.Weigher)
	if !ok {
		t.Skip("the backend does not implement Weigher")
	}
	for n := range mixtures() {
		t.Run(fmt.Sprintf("case=%d", n), func(t *testing.T) {
			a, m, lse := attended(t, b, n)
			defer a.free()
			hs := handles(m.blocks)
			for i := range hs { // Weigh does not read V
				hs[i].V = backend.Side{}
			}
			for power := 1; power <= 2; power++ {
				rel := relFor(m.blocks, power, 0.25)
				require.NoError(t, weigh(b, w, m, hs, rel))
				checkRelevance(t, m.q, lse, m.blocks, rel, 0.25, fmt.Sprintf("power=%d", power))
				again := relFor(m.blocks, power, 0.25)
				require.NoError(t, weigh(b, w, m, hs, again))
				require.Equal(t, rel.Sum, again.Sum, "the same bits")
			}
			a.unchanged()
			require.Error(t, weigh(b, w, m, hs, nil))
			short := relFor(m.blocks, 2, 0)
			short.RowPtr = short.RowPtr[:len(short.RowPtr)-1]
			require.ErrorIs(t, weigh(b, w, m, hs, short), quant.ErrShape)
		})
	}
}

func weigh(b backend.Backend, w backend.Weigher, m mixture, hs []backend.Block,
	rel *backend.RelevanceOut) error {
	return backend.WeighBlocks(context.Background(), b, w, m.q, ropeOf(m.blocks), hs, rel)
}

// argument makes one argument of Attend or Relevance wrong.
type argument struct {
	name string
	want error
	f    func(c *call)
}

// call holds the arguments of Attend and Relevance.
type call struct {
	q              backend.Queries
	rope           *quant.Rope
	blocks         []backend.Block
	out, lse, mass []float32
	rel            backend.RelevanceOut
}

func (c *call) attend(b backend.Backend) error {
	return backend.AttendBlocks(context.Background(), b, &c.q, c.rope, c.blocks,
		backend.Attention{Out: c.out, LSE: c.lse, Mass: c.mass})
}

func (c *call) relevance(b backend.Backend) error {
	return backend.RelevanceBlocks(context.Background(), b, &c.q, c.rope, c.lse, c.blocks, &c.rel)
}

func (c call) clone() call {
	c.q.BlockPtr = append([]int32(nil), c.q.BlockPtr...)
	c.q.BlockIdx = append([]int32(nil), c.q.BlockIdx...)
	c.q.Pos = append([]int64(nil), c.q.Pos...)
	c.blocks = append([]backend.Block(nil), c.blocks...)
	c.out = append([]float32(nil), c.out...)
	c.lse = append([]float32(nil), c.lse...)
	c.mass = append([]float32(nil), c.mass...)
	c.rel.RowPtr = append([]int32(nil), c.rel.RowPtr...)
	c.rel.Sum = append([]float32(nil), c.rel.Sum...)
	return c
}
