// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// mostRows is the largest number of rows of TestEncodeDecode_EveryLength.
const mostRows = 300

// TestEncodeDecode_EveryLength packs and unpacks every number of rows from 0 to 300 on every
// instruction set. Bytes and floats equal those of package quant, and nothing around them is
// written.
func TestEncodeDecode_EveryLength(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	for _, isa := range ISAs() {
		b, err := Open(Options{ISA: isa, Workers: 1})
		require.NoError(t, err)
		for _, name := range []string{"lm1", "lm2+ip", "lm3+len+s8", "lm4", "u8+s8", "f16"} {
			for _, dim := range []int{8, 24} {
				t.Run(fmt.Sprintf("isa=%s/coding=%s/head_dim=%d", isa, name, dim), func(t *testing.T) {
					c, err := quant.ParseCoding(name)
					require.NoError(t, err)
					for rows := 0; rows <= mostRows; rows += step {
						packOnce(t, b, c, rows, dim)
					}
				})
			}
		}
		require.NoError(t, b.Close())
	}
}

// packOnce encodes and decodes rows between canaries in one buffer.
func packOnce(t *testing.T, b *Backend, c quant.Coding, rows, dim int) {
	const canary, guard = 0xa5, 64
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(dim)))
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	src := make([]byte, 4*rows*dim)
	for i := range x.Data {
		x.Data[i] = float32(rng.NormFloat64())
		binary.LittleEndian.PutUint32(src[4*i:], math.Float32bits(x.Data[i]))
	}
	n := c.PackedBytes(rows, dim)
	up := func(k int) int { return (k + guard - 1) / guard * guard }
	at := [3]int{guard, guard + up(len(src)) + guard, 0} // source, packed, decoded
	at[2] = at[1] + up(n) + guard
	all := make([]byte, at[2]+up(len(src))+guard)
	for i := range all {
		all[i] = canary
	}
	copy(all[at[0]:], src)
	buf, err := b.Alloc(int64(len(all)))
	require.NoError(t, err)
	defer buf.Free() //nolint:errcheck // a test's memory
	require.NoError(t, buf.Upload(0, all))
	span := func(off, n int) backend.Span { return backend.Span{Buf: buf, Off: int64(off), Len: int64(n)} }
	side := backend.Side{Coding: c, Data: span(at[1], n), Seed: 5}
	require.NoError(t, b.Encode(context.Background(), []backend.EncodeJob{{Src: span(at[0], len(src)),
		DType: quant.Float32, Rows: rows, Dim: dim, Dst: side}}))
	require.NoError(t, b.Decode(context.Background(), []backend.DecodeJob{{Src: side, Rows: rows,
		Dim: dim, Dst: span(at[2], len(src))}}))

	want := all
	require.NoError(t, quant.Encode(want[at[1]:at[1]+n], c, x, 5))
	back := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	require.NoError(t, quant.Decode(back, c, want[at[1]:at[1]+n], 5))
	for i, v := range back.Data {
		binary.LittleEndian.PutUint32(want[at[2]+4*i:], math.Float32bits(v))
	}
	got := make([]byte, len(all))
	require.NoError(t, buf.Download(0, got))
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%d rows: byte %d is %#x, want %#x (packed from %d, decoded from %d)", rows, i, got[i],
				want[i], at[1], at[2])
		}
	}
}

// TestAttend_EveryLength attends to one block of every number of rows from 0 to 300, on every
// instruction set, with groups of 1 to 8. The outputs equal those of float64 over the decoded rows,
// and nothing around them is written.
func TestAttend_EveryLength(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 13
	}
	for _, isa := range ISAs() {
		b, err := Open(Options{ISA: isa, Workers: 1})
		require.NoError(t, err)
		for _, name := range []string{"lm1", "lm2+ip", "lm3+len+s8", "lm4", "u8+s8", "f16"} {
			for _, dim := range []int{64, 40} {
				t.Run(fmt.Sprintf("isa=%s/coding=%s/head_dim=%d", isa, name, dim), func(t *testing.T) {
					c, err := quant.ParseCoding(name)
					require.NoError(t, err)
					for rows := 0; rows <= mostRows; rows += step {
						attendOnce(t, b, c, rows, dim, 1+rows%8)
					}
				})
			}
		}
		require.NoError(t, b.Close())
	}
}

// attendOnce compares one query with float64.
//
// Tolerance: float32 sums of up to 300 weights are off by 300 * 2^-24. Sums of dim products are off
// by dim * 2^-24 in the score, of at most |q||k| scale, about 8 here. 1e-4 of the largest |v|
// covers both.
func attendOnce(t *testing.T, b *Backend, c quant.Coding, rows, dim, group int) {
	const canary, tolerance = -77, 1e-4
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(dim)))
	draw := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		return x
	}
	var sides [2]backend.Side
	var decoded [2]quant.Rows
	for i := range sides {
		packed := make([]byte, c.PackedBytes(rows, dim))
		decoded[i] = quant.Rows{Dim: dim, Data: draw(rows * dim)}
		require.NoError(t, quant.Encode(packed, c, decoded[i], uint64(i)))
		require.NoError(t, quant.Decode(decoded[i], c, packed, uint64(i)))
		buf, err := b.Alloc(int64(len(packed)))
		require.NoError(t, err)
		defer buf.Free() //nolint:errcheck // a test's memory
		require.NoError(t, buf.Upload(0, packed))
		sides[i] = backend.Side{Coding: c, Seed: uint64(i), Data: backend.Span{Buf: buf, Len: int64(len(packed))}}
	}
	q := &backend.Queries{Q: draw(group * dim), Group: group, HeadDim: dim, HeadDimV: dim,
		Scale: float32(1 / math.Sqrt(float64(dim))), BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
	all, lse := make([]float32, group*dim+16), make([]float32, group)
	for i := range all {
		all[i] = canary
	}
	out := all[8 : 8+group*dim : 8+group*dim]
	require.NoError(t, backend.AttendBlocks(context.Background(), b, q, nil,
		[]backend.Block{{Rows: int32(rows), K: sides[0], V: sides[1]}}, backend.Attention{Out: out, LSE: lse}))
	for i := range 8 {
		require.Equal(t, [2]float32{canary, canary}, [2]float32{all[i], all[len(all)-1-i]}, "%d rows", rows)
	}
	for h := range group {
		want, most, sum := make([]float64, dim), 0.0, 0.0
		for r := range rows {
			var score float64
			for d, k := range decoded[0].Row(r) {
				score += float64(q.Q[h*dim+d]) * float64(k)
			}
			p := math.Exp(score * float64(q.Scale))
			sum += p
			for d, v := range decoded[1].Row(r) {
				want[d] += p * float64(v)
				most = max(most, math.Abs(float64(v)))
			}
		}
		if rows == 0 {
			require.True(t, math.IsInf(float64(lse[h]), -1))
			require.Equal(t, make([]float32, dim), out[h*dim:(h+1)*dim])
			continue
		}
		require.InDelta(t, math.Log(sum), float64(lse[h]), tolerance, "%d rows, head %d", rows, h)
		for d := range want {
			if e := math.Abs(want[d]/sum - float64(out[h*dim+d])); !(e <= tolerance*most) {
				t.Fatalf("%d rows, head %d of %d, value %d: %v, want %v", rows, h, group, d, out[h*dim+d], want[d]/sum)
			}
		}
	}
}
