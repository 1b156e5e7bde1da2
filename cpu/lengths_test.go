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
// instruction set: bytes and floats are those of package quant, and nothing around them is written.
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

// packOnce encodes and decodes rows that lie between canaries of one buffer.
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
