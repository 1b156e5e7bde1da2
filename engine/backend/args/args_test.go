// SPDX-License-Identifier: Apache-2.0

package args_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// memory is a buffer that knows where it lies.
type memory struct{ at, n int64 }

func (m *memory) Len() int64                   { return m.n }
func (m *memory) Upload(int64, []byte) error   { return nil }
func (m *memory) Download(int64, []byte) error { return nil }
func (m *memory) Free() error                  { return nil }

var checker = args.Checker[int64]{
	Supports: func(_ backend.Op, c quant.Coding, dim int) bool { return c.CheckDim(dim) == nil },
	Bytes: func(s backend.Span) (int64, error) {
		m, ok := s.Buf.(*memory)
		if !ok || s.Off < 0 || s.Off > m.n-s.Len {
			return 0, quant.ErrShape
		}
		return m.at + s.Off, nil
	},
}

func TestSpan_PlaceLengthAndAlignment(t *testing.T) {
	m := &memory{at: 1000, n: 64}
	at, err := checker.Span("x", backend.Span{Buf: m, Off: 16, Len: 8}, 8, 8)
	require.NoError(t, err)
	require.Equal(t, int64(1016), at)
	none, err := checker.Span("x", backend.Span{}, 0, 8)
	require.NoError(t, err)
	require.Zero(t, none)
	for _, bad := range []backend.Span{{Buf: m, Off: 16, Len: 9}, {Buf: m, Off: 4, Len: 8},
		{Buf: m, Off: 64, Len: 8}, {Len: 8}} {
		_, err := checker.Span("x", bad, 8, 8)
		require.ErrorIs(t, err, quant.ErrShape, "%+v", bad)
	}
}

func TestOverlap_SharesBytes(t *testing.T) {
	m, other := &memory{n: 64}, &memory{n: 64}
	span := func(b backend.Buffer, off, n int64) backend.Span { return backend.Span{Buf: b, Off: off, Len: n} }
	require.True(t, args.Overlap(span(m, 0, 16), span(m, 15, 1)))
	require.False(t, args.Overlap(span(m, 0, 16), span(m, 16, 4)))
	require.False(t, args.Overlap(span(m, 0, 16), span(other, 0, 16)))
	require.False(t, args.Overlap(span(m, 0, 16), span(m, 4, 0)), "nothing overlaps nothing")
	require.True(t, args.Absent(backend.Span{}))
	require.False(t, args.Absent(span(m, 0, 0)))
}

func TestUsers_TransposesLists(t *testing.T) {
	q := &backend.Queries{BlockPtr: []int32{0, 2, 2, 5}, BlockIdx: []int32{2, 0, 0, 2, 2}}
	ptr, users := args.Users(nil, nil, q, 3)
	require.Equal(t, []int{0, 2, 2, 5}, ptr)
	require.Equal(t, []int32{0, 2, 0, 2, 2}, users)
}

func TestJobError_TakesTheRowFromTheCause(t *testing.T) {
	var e *backend.JobError
	err := args.JobError(backend.OpEncode, 3, &quant.RowError{Row: 7, Err: quant.ErrRange})
	require.True(t, errors.As(err, &e))
	require.Equal(t, 7, e.Row)
	require.ErrorIs(t, err, quant.ErrRange)
	require.True(t, errors.As(args.JobError(backend.OpDecode, 1, quant.ErrShape), &e))
	require.Equal(t, -1, e.Row)
}
