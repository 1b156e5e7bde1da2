// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// goodCall is a valid call. Each case below makes one argument wrong.
func goodCall(t *testing.T, a *arena) (call, []known) {
	const dim, rows = 64, 9
	bias, count, pos := make([]float32, rows), make([]uint16, rows), make([]uint16, rows)
	for i := range count {
		count[i], pos[i] = uint16(i+1), uint16(8-i)
	}
	blocks := []known{
		place(a, spec{rows: rows, k: mustCoding(t, "lm4"), v: mustCoding(t, "lm2"), seedK: 1,
			seedV: 2, bias: bias, count: count, pos: pos, offset: 7, noise: 0.1,
			meanK: make([]float32, dim), meanV: make([]float32, dim), metric: halves(dim), limit: 8, stride: 2},
			dim, dim),
		place(a, spec{rows: rows, k: mustCoding(t, "u8"), v: mustCoding(t, "f16"), seedK: 1, draw: 4},
			dim, dim),
	}
	q := queriesFor(2, 2, dim, dim, 1, [][]int32{{0, 1}, {1}})
	q.Pos, q.Window = []int64{20, 30}, 100
	blocks[0].rope = &quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 1e4}
	c := call{q: *q, rope: blocks[0].rope, blocks: handles(blocks), rel: *relFor(blocks, 2, 9)}
	for range 2 * 2 * dim {
		c.out = append(c.out, 9)
	}
	c.lse, c.mass = []float32{9, 9, 9, 9}, []float32{9, 9, 9}
	return c, blocks
}

// wrongBoth are wrong arguments that Attend and Relevance share.
func wrongBoth() []argument {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	cases := []argument{
		{"Q too short", quant.ErrShape, func(c *call) { c.q.Q = c.q.Q[1:] }},
		{"Q missing", quant.ErrShape, func(c *call) { c.q.Q = nil }},
		{"group 0", quant.ErrShape, func(c *call) { c.q.Group = 0 }},
		{"group negative", quant.ErrShape, func(c *call) { c.q.Group = -2 }},
		{"group huge", quant.ErrShape, func(c *call) { c.q.Group = math.MaxInt }},
		{"head_dim 0", quant.ErrShape, func(c *call) { c.q.HeadDim = 0 }},
		{"head_dim huge", quant.ErrShape, func(c *call) { c.q.HeadDim = math.MaxInt / 2 }},
		{"head_dim_v negative", quant.ErrShape, func(c *call) { c.q.HeadDimV = -64 }},
		{"scale NaN", quant.ErrShape, func(c *call) { c.q.Scale = nan }},
		{"scale Inf", quant.ErrShape, func(c *call) { c.q.Scale = inf }},
		{"softcap negative", quant.ErrShape, func(c *call) { c.q.Softcap = -1 }},
		{"softcap NaN", quant.ErrShape, func(c *call) { c.q.Softcap = nan }},
		{"positions too few", quant.ErrShape, func(c *call) { c.q.Pos = c.q.Pos[:1] }},
		{"window negative", quant.ErrShape, func(c *call) { c.q.Window = -1 }},
		{"window without positions", quant.ErrShape, func(c *call) { c.q.Pos = nil }},
		{"BlockPtr starts late", quant.ErrShape, func(c *call) { c.q.BlockPtr[0] = 1 }},
		{"BlockPtr negative", quant.ErrShape, func(c *call) { c.q.BlockPtr[0] = -1 }},
		{"BlockPtr descends", quant.ErrShape, func(c *call) { c.q.BlockPtr[1] = 4 }},
		{"BlockPtr ends early", quant.ErrShape, func(c *call) { c.q.BlockPtr[2] = 2 }},
		{"BlockPtr ends late", quant.ErrShape, func(c *call) { c.q.BlockPtr[2] = math.MaxInt32 }},
		{"BlockPtr missing", quant.ErrShape, func(c *call) { c.q.BlockPtr, c.q.Q = nil, nil }},
		{"BlockIdx beyond", quant.ErrShape, func(c *call) { c.q.BlockIdx[1] = 2 }},
		{"BlockIdx negative", quant.ErrShape, func(c *call) { c.q.BlockIdx[0] = -1 }},
		{"no blocks", quant.ErrShape, func(c *call) { c.blocks = nil }},
		{"offset without rope", quant.ErrShape, func(c *call) { c.rope = nil }},
		{"rope of another dim", quant.ErrShape, func(c *call) {
			c.rope = &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 66, Theta: 1e4}
		}},
		{"inv_freq too short", quant.ErrShape, func(c *call) {
			c.rope = &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 64, InvFreq: make([]float32, 31)}
		}},
		{"K of two seeds", quant.ErrShape, func(c *call) { c.blocks[1].K.Seed = 99 }},
	}
	return append(cases, wrongBlocks()...)
}

// wrongBlocks are wrong blocks.
func wrongBlocks() []argument {
	nan := float32(math.NaN())
	side := func(s *backend.Side, f func(s *backend.Side)) { f(s) }
	return []argument{
		{"rows negative", quant.ErrShape, func(c *call) { c.blocks[0].Rows = -1 }},
		{"rows too many", quant.ErrShape, func(c *call) { c.blocks[0].Rows = 10 }},
		{"rows most", quant.ErrShape, func(c *call) { c.blocks[0].Rows = math.MaxInt32 }},
		{"K missing", quant.ErrShape, func(c *call) { c.blocks[0].K.Data = backend.Span{} }},
		{"K too short", quant.ErrShape, func(c *call) {
			side(&c.blocks[0].K, func(s *backend.Side) { s.Data.Len-- })
		}},
		{"K not on 16", quant.ErrShape, func(c *call) {
			side(&c.blocks[0].K, func(s *backend.Side) { s.Data.Off += 4 })
		}},
		{"K before the buffer", quant.ErrShape, func(c *call) { c.blocks[0].K.Data.Off = -32 }},
		{"K past the buffer", quant.ErrShape, func(c *call) {
			side(&c.blocks[0].K, func(s *backend.Side) { s.Data.Off = s.Data.Buf.Len() })
		}},
		{"K offset overflows", quant.ErrShape, func(c *call) {
			c.blocks[0].K.Data.Off = math.MaxInt64 - 15
		}},
		{"K of another coding", quant.ErrShape, func(c *call) {
			side(&c.blocks[0].K, func(s *backend.Side) { s.Coding.Format = quant.LM3 })
		}},
		{"K of no coding", quant.ErrUnsupported, func(c *call) {
			side(&c.blocks[0].K, func(s *backend.Side) { s.Coding.Format = 0 })
		}},
		{"Pos too short", quant.ErrShape, func(c *call) { c.blocks[0].Pos.Len -= 2 }},
		{"Pos odd", quant.ErrShape, func(c *call) { c.blocks[0].Pos.Off++ }},
		{"Pos past the buffer", quant.ErrShape, func(c *call) {
			c.blocks[0].Pos.Off = c.blocks[0].Pos.Buf.Len()
		}},
		{"Count too long", quant.ErrShape, func(c *call) { c.blocks[0].Count.Len += 2 }},
		{"Count without buffer", quant.ErrShape, func(c *call) { c.blocks[0].Count.Buf = nil }},
		{"Bias too short", quant.ErrShape, func(c *call) { c.blocks[0].Bias.Len -= 4 }},
		{"Bias not on 4", quant.ErrShape, func(c *call) { c.blocks[0].Bias.Off += 2 }},
		{"noise NaN", quant.ErrShape, func(c *call) { c.blocks[0].Noise = nan }},
		{"stride negative", quant.ErrShape, func(c *call) { c.blocks[0].Stride = -1 }},
		{"limit negative", quant.ErrShape, func(c *call) { c.blocks[0].Limit = -1 }},
		{"tokens negative", quant.ErrShape, func(c *call) { c.blocks[1].Tokens = -1 }},
		{"mean of K too short", quant.ErrShape, func(c *call) { c.blocks[0].MeanK.Len -= 2 }},
		{"mean of K odd", quant.ErrShape, func(c *call) { c.blocks[0].MeanK.Off++ }},
		{"mean of V without buffer", quant.ErrShape, func(c *call) { c.blocks[0].MeanV.Buf = nil }},
		{"metric of another dim", quant.ErrShape, func(c *call) { c.blocks[0].Metric = halves(32) }},
	}
}

// halves is a metric of values 1/2.
func halves(dim int) *frame.Metric {
	a := make([]float32, dim)
	for i := range a {
		a[i] = 0.5
	}
	m, err := frame.NewDiagonal(a)
	if err != nil {
		panic(err)
	}
	return m
}

func testAttendArguments(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	good, blocks := goodCall(t, a)
	a.upload()
	cases := append(wrongBoth(),
		argument{"out too short", quant.ErrShape, func(c *call) { c.out = c.out[1:] }},
		argument{"out missing", quant.ErrShape, func(c *call) { c.out = nil }},
		argument{"lse too long", quant.ErrShape, func(c *call) { c.lse = append(c.lse, 9) }},
		argument{"mass too short", quant.ErrShape, func(c *call) { c.mass = c.mass[1:] }},
		argument{"block without V", quant.ErrShape, func(c *call) { c.blocks[1].V = backend.Side{} }},
		argument{"V missing", quant.ErrShape, func(c *call) { c.blocks[0].V.Data = backend.Span{} }},
		argument{"V too long", quant.ErrShape, func(c *call) { c.blocks[1].V.Data.Len++ }},
		argument{"V of no coding", quant.ErrUnsupported, func(c *call) {
			c.blocks[1].V.Coding.Rule = 3
		}},
	)
	for _, x := range cases {
		c := good.clone()
		x.f(&c)
		require.ErrorIs(t, c.attend(b), x.want, x.name)
		for _, v := range append(append(c.out, c.lse...), c.mass...) {
			require.Equal(t, float32(9), v, "%s: written", x.name)
		}
	}
	testWrongViews(t, b, &good)
	a.unchanged()
	c := good.clone()
	require.NoError(t, c.attend(b))
	checkAttend(t, &c.q, blocks, c.out, c.lse, "the call itself is good")
}

// testWrongViews calls Attend without queries, without a view, and with those of closed tables.
func testWrongViews(t *testing.T, b backend.Backend, good *call) {
	ctx := context.Background()
	table, err := b.NewTable(backend.Shape{HeadDim: good.q.HeadDim, HeadDimV: good.q.HeadDimV,
		Rope: good.rope})
	require.NoError(t, err)
	require.NoError(t, table.Set(0, good.blocks...))
	v, err := table.View()
	require.NoError(t, err)
	to := backend.Attention{Out: good.out}
	require.ErrorIs(t, b.Attend(ctx, nil, v, backend.Attention{}), quant.ErrShape)
	require.ErrorIs(t, b.Attend(ctx, &good.q, nil, to), quant.ErrShape)
	other := good.q
	other.HeadDimV = 32
	require.ErrorIs(t, b.Attend(ctx, &other, v, backend.Attention{Out: to.Out[:len(to.Out)/2]}),
		quant.ErrShape, "a table of another shape")
	require.NoError(t, table.Close())
	require.ErrorIs(t, b.Attend(ctx, &good.q, v, to), quant.ErrClosed)
	for _, x := range good.out {
		require.Equal(t, float32(9), x)
	}
}

func testRelevanceArguments(t *testing.T, b backend.Backend) {
	a := newArena(t, b)
	defer a.free()
	good, blocks := goodCall(t, a)
	a.upload()
	require.NoError(t, good.attend(b))
	cases := append(wrongBoth(),
		argument{"lse missing", quant.ErrShape, func(c *call) { c.lse = nil }},
		argument{"lse too short", quant.ErrShape, func(c *call) { c.lse = c.lse[1:] }},
		argument{"power 0", quant.ErrShape, func(c *call) { c.rel.Power = 0 }},
		argument{"power 3", quant.ErrShape, func(c *call) { c.rel.Power = 3 }},
		argument{"RowPtr missing", quant.ErrShape, func(c *call) { c.rel.RowPtr = nil }},
		argument{"RowPtr starts late", quant.ErrShape, func(c *call) { c.rel.RowPtr[0] = 1 }},
		argument{"RowPtr of other blocks", quant.ErrShape, func(c *call) { c.rel.RowPtr[1] = 8 }},
		argument{"RowPtr too long", quant.ErrShape, func(c *call) {
			c.rel.RowPtr = append(c.rel.RowPtr, 18)
		}},
		argument{"RowPtr beyond", quant.ErrShape, func(c *call) { c.rel.RowPtr[2] = 19 }},
		argument{"RowPtr negative", quant.ErrShape, func(c *call) { c.rel.RowPtr[1] = -9 }},
		argument{"Sum too short", quant.ErrShape, func(c *call) { c.rel.Sum = c.rel.Sum[1:] }},
	)
	for _, x := range cases {
		c := good.clone()
		x.f(&c)
		require.ErrorIs(t, c.relevance(b), x.want, x.name)
		for _, v := range c.rel.Sum {
			require.Equal(t, float32(9), v, "%s: written", x.name)
		}
	}
	err := backend.RelevanceBlocks(context.Background(), b, &good.q, good.rope, good.lse, good.blocks, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	a.unchanged()
	c := good.clone()
	require.NoError(t, c.relevance(b))
	checkRelevance(t, &c.q, c.lse, blocks, &c.rel, 9, "the call itself is good")
}
