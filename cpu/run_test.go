// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Runs give the bits of single tiles. Three heads attend in runs; the same query twice has six heads, which
// do not. The lists have blocks that end runs: of other formats, of part tiles, with biases, means, metrics,
// offsets and noise, and with scales that end a run in the middle of a block.
func TestAttend_RunsDoNotMatter(t *testing.T) {
	const dim, group = 64, 3
	for _, isa := range ISAs() {
		for _, rows := range []int{32, 96} {
			r := newRigOf(t, Options{ISA: isa, Workers: 1}, dim, rows, 24, "lm2", "lm3+s8", "lm1", "lm2", "lm4+s8",
				"lm3", "f16", "lm2+s8")
			changeBlocks(t, r, rows)
			for _, end := range []int{24 * rows, 13*rows + 7, 40} {
				for _, window := range []int64{0, int64(7*rows + 5)} {
					t.Run(fmt.Sprintf("isa=%s/rows=%d/pos=%d/window=%d", isa, rows, end, window), func(t *testing.T) {
						q := r.queries(1, group, dim)
						q.Pos[0], q.Window = int64(end), window
						twice := *q
						twice.Q = slices.Concat(q.Q, q.Q)
						twice.Pos = slices.Concat(q.Pos, q.Pos)
						twice.BlockIdx = slices.Concat(q.BlockIdx, q.BlockIdx)
						twice.BlockPtr = []int32{0, int32(len(q.BlockIdx)), int32(2 * len(q.BlockIdx))}
						one, both := attendTerms(t, r, q), attendTerms(t, r, &twice)
						require.Equal(t, both.Out[:len(one.Out)], one.Out)
						require.Equal(t, both.LSE[:len(one.LSE)], one.LSE)
						require.Equal(t, both.Mass[:len(one.Mass)], one.Mass)
					})
				}
			}
		}
	}
}

// changeBlocks gives some blocks what runs have to stop for.
func changeBlocks(t *testing.T, r rig, rows int) {
	t.Helper()
	mean, err := r.b.Alloc(int64(2 * frame.MeanBytes(64)))
	require.NoError(t, err)
	half := make([]byte, 2*frame.MeanBytes(64))
	for i := range len(half) / 2 {
		binary.LittleEndian.PutUint16(half[2*i:], uint16(0x3000+37*i%0x400))
	}
	require.NoError(t, mean.Upload(0, half))
	m, err := frame.NewDiagonal(slices.Repeat([]float32{2, 0.5}, 32))
	require.NoError(t, err)
	for i := range r.blocks {
		b := &r.blocks[i]
		switch {
		case i >= 4 && i < 12:
			b.MeanK = backend.Span{Buf: mean, Len: int64(frame.MeanBytes(64))}
			b.MeanV = backend.Span{Buf: mean, Off: int64(i / 8 * frame.MeanBytes(64)), Len: int64(frame.MeanBytes(64))}
			if i >= 8 {
				b.Metric = m
			}
		case i >= 14 && i < 20:
			b.Offset, b.Noise = int32(i/3), 0.01
		case i == 12:
			b.Tokens = 3
		case i == 13:
			b.Limit = int32(rows/2 + 1)
		}
	}
	last := r.blocks[21].V // lm3: its scales are halves
	at := last.Data.Len - int64(last.Coding.ScaleBytes(rows)) + int64(2*(rows-5))
	require.NoError(t, last.Data.Buf.Upload(at, []byte{0x00, 0xb8})) // -0.5
}

func attendTerms(t *testing.T, r rig, q *backend.Queries) backend.Attention {
	t.Helper()
	to := backend.Attention{Out: make([]float32, q.Len()*q.Group*q.HeadDimV), LSE: make([]float32, q.Len()*q.Group),
		Mass: make([]float32, len(q.BlockIdx))}
	rope := &quant.Rope{Layout: quant.RopeHalf, RotaryDim: 64, Theta: 1e4}
	require.NoError(t, backend.AttendBlocks(context.Background(), r.b, q, rope, r.blocks, to))
	for _, x := range to.Out {
		require.False(t, math.IsNaN(float64(x)))
	}
	return to
}
