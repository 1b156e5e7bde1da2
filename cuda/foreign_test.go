// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Memory of another owner in the same context, here another backend, is read and written in place.
func TestAdopt_MemoryOfOthers(t *testing.T) {
	s := newStandIn(t, "")
	owner, err := s.open(Options{})
	require.NoError(t, err)
	b, err := s.open(Options{Memory: 1 << 20})
	require.NoError(t, err)
	require.Zero(t, b.Device())

	const rows, dim = 5, 64
	c := quant.Coding{Format: quant.LM3, Rule: quant.LengthKeeping}
	packed := int64(c.PackedBytes(rows, dim))
	theirs, err := owner.Alloc(512 + packed)
	require.NoError(t, err)
	at, err := owner.Address(backend.Span{Buf: theirs, Off: 512, Len: packed})
	require.NoError(t, err)
	require.Zero(t, at%foreignAlign)
	before := s.count(countBytes)
	buf, err := b.Adopt(at, packed)
	require.NoError(t, err)
	require.Equal(t, packed, buf.Len())
	require.Equal(t, before, s.count(countBytes))

	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	raw := make([]byte, 2*len(x.Data))
	for i := range x.Data {
		v := float32(i%17) - 8
		x.Data[i], raw[2*i], raw[2*i+1] = v, byte(quant.F32ToF16(v)), byte(quant.F32ToF16(v)>>8)
	}
	want := make([]byte, packed)
	require.NoError(t, quant.Encode(want, c, x, 7))
	src, err := b.Alloc(int64(len(raw)))
	require.NoError(t, err)
	require.NoError(t, src.Upload(0, raw))
	require.NoError(t, b.Encode(context.Background(), []backend.EncodeJob{{Src: backend.Span{Buf: src, Len: int64(len(raw))},
		DType: quant.Float16, Rows: rows, Dim: dim,
		Dst: backend.Side{Coding: c, Data: backend.Span{Buf: buf, Len: packed}, Seed: 7}}}))
	got := make([]byte, packed)
	require.NoError(t, theirs.Download(512, got))
	require.Equal(t, want, got, "the owner sees what was packed")

	require.NoError(t, buf.Free())
	require.ErrorIs(t, buf.Free(), quant.ErrClosed)
	require.NoError(t, theirs.Download(512, got), "the memory stays its owner's")
	left, err := b.Adopt(at, packed)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	_, err = b.Address(backend.Span{Buf: left, Len: 1})
	require.ErrorIs(t, err, quant.ErrClosed)
	require.NoError(t, theirs.Download(512, got), "Close gives back what is its own only")
	require.NoError(t, owner.Close())
	s.clean()
}

func TestAdopt_Refusals(t *testing.T) {
	s := newStandIn(t, "")
	b, err := s.open(Options{})
	require.NoError(t, err)
	for _, x := range []struct {
		at uint64
		n  int64
	}{{0, 1}, {256, 0}, {256, -1}, {257, 1}, {^uint64(255), 512}} {
		_, err := b.Adopt(x.at, x.n)
		require.ErrorIs(t, err, quant.ErrShape, x)
	}
	buf, err := b.Alloc(16)
	require.NoError(t, err)
	_, err = b.Address(backend.Span{Buf: buf, Off: 8, Len: 9})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = b.Address(backend.Span{})
	require.ErrorIs(t, err, quant.ErrShape)
	require.NoError(t, b.Close())
	_, err = b.Adopt(256, 1)
	require.ErrorIs(t, err, quant.ErrClosed)
	s.clean()
}
