// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// A query that holds NaN or an infinity gives NaN, and changes nothing of the other heads.
func TestInt8_QueryThatIsNoNumber(t *testing.T) {
	s := newStandIn(t, "sm=80")
	b, err := s.open(Options{Attend: AttendInt8, NoSelfTest: true})
	require.NoError(t, err)
	for _, dim := range []int{64, 128} {
		const rows, heads = 40, 3
		c := quant.Coding{Format: quant.LM3, Scale: quant.ScaleLog8}
		packed := make([]byte, c.PackedBytes(rows, dim))
		require.NoError(t, quant.Encode(packed, c, quanttest.Rows(quanttest.Gaussian, rows, dim, 1), 5))
		buf, err := b.Alloc(int64(len(packed)))
		require.NoError(t, err)
		require.NoError(t, buf.Upload(0, packed))
		side := backend.Side{Coding: c, Data: backend.Span{Buf: buf, Len: int64(len(packed))}, Seed: 5}
		q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, heads, dim, 2).Data, Group: heads,
			HeadDim: dim, HeadDimV: dim, Scale: 0.125, BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
		attend := func() []float32 {
			out := make([]float32, heads*dim)
			require.NoError(t, backend.AttendBlocks(context.Background(), b, q, nil,
				[]backend.Block{{Rows: rows, K: side, V: side}}, backend.Attention{Out: out}))
			return out
		}
		want := attend()
		for _, odd := range []float64{math.NaN(), math.Inf(-1)} {
			q.Q[dim+3] = float32(odd)
			got := attend()
			require.Equal(t, want[:dim], got[:dim])
			require.Equal(t, want[2*dim:], got[2*dim:])
			for _, x := range got[dim : 2*dim] {
				require.True(t, math.IsNaN(float64(x)), "%g gives %g", odd, x)
			}
		}
		require.NoError(t, buf.Free())
	}
	require.NoError(t, b.Close())
	s.clean()
}
