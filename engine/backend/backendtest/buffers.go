// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

func testCaps(t *testing.T, b backend.Backend) {
	c := b.Caps()
	require.NotEmpty(t, c.Name)
	require.NotEmpty(t, c.Device)
	require.NotEmpty(t, c.ISA)
	require.GreaterOrEqual(t, c.Memory, int64(0))
	require.GreaterOrEqual(t, c.Workers, 0)
}

func testBuffers(t *testing.T, b backend.Backend) {
	buf, err := b.Alloc(1000)
	require.NoError(t, err)
	require.Equal(t, int64(1000), buf.Len())
	got := bytes.Repeat([]byte{1}, 1000)
	require.NoError(t, buf.Download(0, got))
	require.Equal(t, make([]byte, 1000), got, "a new buffer is zeroed")

	src := []byte("seven b")
	require.NoError(t, buf.Upload(993, src))
	require.NoError(t, buf.Upload(1000, nil))
	require.NoError(t, buf.Download(986, got[:14]))
	require.Equal(t, append(make([]byte, 7), src...), got[:14])

	for _, off := range []int64{-1, 994, 1001, math.MaxInt64, math.MinInt64} {
		require.ErrorIs(t, buf.Upload(off, src), quant.ErrShape, "offset %d", off)
		require.ErrorIs(t, buf.Download(off, got[:7]), quant.ErrShape, "offset %d", off)
	}
	require.NoError(t, buf.Free())
	require.ErrorIs(t, buf.Upload(0, src), quant.ErrClosed)
	require.ErrorIs(t, buf.Download(0, got), quant.ErrClosed)
	require.ErrorIs(t, buf.Free(), quant.ErrClosed, "a second Free")

	empty, err := b.Alloc(0)
	require.NoError(t, err)
	require.NoError(t, empty.Upload(0, nil))
	require.NoError(t, empty.Free())

	_, err = b.Alloc(-1)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = b.Alloc(math.MaxInt64)
	require.ErrorIs(t, err, quant.ErrTooLarge)
}

// testSupports calls Supports for everything and checks that the backend refuses what it does not
// support.
func testSupports(t *testing.T, b backend.Backend) {
	require.False(t, b.Supports(backend.Op(200), quant.Coding{Format: quant.F16}, 64))
	codings := append(quanttest.Codings(), quant.Coding{}, quant.Coding{Format: 99},
		quant.Coding{Format: quant.F16, Rule: quant.LengthKeeping},
		quant.Coding{Format: quant.LM4, Scale: 7})
	for _, c := range codings {
		for _, dim := range []int{-8, 0, 1, 7, 8, 40, 64, 80, 100, 256, 1 << 16, 1<<16 + 8} {
			for op := backend.OpEncode; op <= backend.OpGather; op++ {
				if b.Supports(op, c, dim) {
					require.NoError(t, c.CheckDim(dim), "%s %s dim=%d", op, c, dim)
					continue
				}
				err := tryVerb(b, op, c, dim)
				require.ErrorIs(t, err, quant.ErrUnsupported, "%s %s dim=%d", op, c, dim)
			}
		}
	}
}

// tryVerb calls op with no rows.
func tryVerb(b backend.Backend, op backend.Op, c quant.Coding, dim int) error {
	ctx, side := context.Background(), backend.Side{Coding: c}
	switch op {
	case backend.OpEncode:
		return b.Encode(ctx, []backend.EncodeJob{{DType: quant.Float32, Dim: dim, Dst: side}})
	case backend.OpDecode:
		return b.Decode(ctx, []backend.DecodeJob{{Src: side, Dim: dim}})
	case backend.OpDemote:
		return b.Demote(ctx, []backend.DemoteJob{{Src: side, To: c, Dim: dim}})
	case backend.OpGather:
		return b.Gather(ctx, []backend.GatherJob{{Dst: side, Dim: dim}})
	}
	// An invalid dim is a wrong shape of the queries, not of the block.
	exact := backend.Side{Coding: quant.Coding{Format: quant.F32}}
	if dim < 1 || dim > quant.MaxDim {
		return quant.ErrUnsupported
	}
	q := &backend.Queries{Q: make([]float32, dim), Group: 1, HeadDim: dim, HeadDimV: 8,
		BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
	blocks := []backend.Block{{K: side, V: exact}}
	if op == backend.OpAttend {
		return backend.AttendBlocks(ctx, b, q, nil, blocks, backend.Attention{Out: make([]float32, 8)})
	}
	rel := &backend.RelevanceOut{Power: 1, RowPtr: []int32{0, 0}}
	return backend.RelevanceBlocks(ctx, b, q, nil, make([]float32, 1), blocks, rel)
}

func testClosed(t *testing.T, b backend.Backend) {
	buf, err := b.Alloc(64)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	require.NoError(t, b.Close(), "a second Close")
	ctx := context.Background()
	_, err = b.Alloc(64)
	require.ErrorIs(t, err, quant.ErrClosed)
	require.ErrorIs(t, buf.Upload(0, []byte{1}), quant.ErrClosed)
	require.ErrorIs(t, b.Encode(ctx, nil), quant.ErrClosed)
	require.ErrorIs(t, b.Decode(ctx, nil), quant.ErrClosed)
	require.ErrorIs(t, b.Demote(ctx, nil), quant.ErrClosed)
	require.ErrorIs(t, b.Gather(ctx, nil), quant.ErrClosed)
	q := &backend.Queries{Group: 1, HeadDim: 8, HeadDimV: 8}
	require.ErrorIs(t, backend.AttendBlocks(ctx, b, q, nil, nil, backend.Attention{}), quant.ErrClosed)
	rel := &backend.RelevanceOut{Power: 1, RowPtr: []int32{0}}
	require.ErrorIs(t, backend.RelevanceBlocks(ctx, b, q, nil, nil, nil, rel), quant.ErrClosed)
	require.NotEmpty(t, b.Caps().Name)
}

// hostBuffer is a buffer of no backend.
type hostBuffer []byte

func (h hostBuffer) Len() int64                         { return int64(len(h)) }
func (h hostBuffer) Upload(off int64, p []byte) error   { copy(h[off:], p); return nil }
func (h hostBuffer) Download(off int64, p []byte) error { copy(p, h[off:]); return nil }
func (h hostBuffer) Free() error                        { return nil }

// testForeign passes buffers of a, of no backend, and freed ones to b.
func testForeign(t *testing.T, a, b backend.Backend) {
	c := quant.Coding{Format: quant.F32}
	foreign, err := a.Alloc(256)
	require.NoError(t, err)
	freed, err := b.Alloc(256)
	require.NoError(t, err)
	require.NoError(t, freed.Free())
	own, err := b.Alloc(256)
	require.NoError(t, err)
	ctx := context.Background()
	span := func(buf backend.Buffer) backend.Span { return backend.Span{Buf: buf, Len: 32} }
	for _, bad := range []struct {
		name string
		buf  backend.Buffer
		want error
	}{
		{"another backend's", foreign, quant.ErrShape},
		{"nobody's", hostBuffer(make([]byte, 256)), quant.ErrShape},
		{"freed", freed, quant.ErrClosed},
	} {
		enc := backend.EncodeJob{Src: span(own), DType: quant.Float32, Rows: 1, Dim: 8,
			Dst: backend.Side{Coding: c, Data: span(bad.buf)}}
		require.ErrorIs(t, b.Encode(ctx, []backend.EncodeJob{enc}), bad.want, bad.name)
		enc.Src, enc.Dst.Data = span(bad.buf), span(own)
		require.ErrorIs(t, b.Encode(ctx, []backend.EncodeJob{enc}), bad.want, bad.name)
		dec := backend.DecodeJob{Src: backend.Side{Coding: c, Data: span(bad.buf)}, Rows: 1, Dim: 8,
			Dst: span(own)}
		require.ErrorIs(t, b.Decode(ctx, []backend.DecodeJob{dec}), bad.want, bad.name)
		q := &backend.Queries{Q: make([]float32, 8), Group: 1, HeadDim: 8, HeadDimV: 8, Scale: 1,
			BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
		good := backend.Side{Coding: c, Data: span(own)}
		for i, blk := range []backend.Block{
			{Rows: 1, K: backend.Side{Coding: c, Data: span(bad.buf)}, V: good},
			{Rows: 1, K: good, V: backend.Side{Coding: c, Data: span(bad.buf)}},
			{Rows: 1, K: good, V: good, Bias: backend.Span{Buf: bad.buf, Len: 4}},
			{Rows: 1, K: good, V: good, MeanV: backend.Span{Buf: bad.buf, Len: 16}},
		} {
			out := []float32{7, 7, 7, 7, 7, 7, 7, 7}
			err := backend.AttendBlocks(ctx, b, q, nil, []backend.Block{blk}, backend.Attention{Out: out})
			require.ErrorIs(t, err, bad.want, "%s %d", bad.name, i)
			require.Equal(t, []float32{7, 7, 7, 7, 7, 7, 7, 7}, out)
		}
	}
}
