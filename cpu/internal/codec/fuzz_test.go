// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// FuzzEncode encodes rows of any bits on every instruction set. It expects the bytes of
// quant.Encode, or its refusal.
func FuzzEncode(f *testing.F) {
	f.Add(uint8(3), uint8(8), []byte("any bytes at all, four to a value"))
	f.Add(uint8(9), uint8(9), []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x80, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ci, size uint8, data []byte) {
		all := quanttest.Codings()
		c, dim := all[int(ci)%len(all)], 8*(1+int(size)%40)
		if !Encodes(c) || len(data) == 0 {
			t.Skip("nothing to encode")
		}
		rows := 1 + len(data)/(4*dim)
		x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
		for i := range x.Data {
			var w [4]byte
			for j := range w {
				w[j] = data[(4*i+j)%len(data)]
			}
			x.Data[i] = math.Float32frombits(binary.LittleEndian.Uint32(w[:]))
		}
		want := make([]byte, c.PackedBytes(rows, dim))
		oracle := quant.Encode(want, c, x, 1)
		rot, err := NewRotation(dim, 1)
		require.NoError(t, err)
		for _, k := range append([]*Kernels{Generic()}, Native()...) {
			got := make([]byte, len(want))
			require.Equal(t, oracle == nil, k.NewWorker().Encode(got, c, rows, rot, loader(x)), k.isa)
			if oracle == nil {
				require.Equal(t, want, got, "%s %s", k.isa, c)
			}
		}
	})
}
