// SPDX-License-Identifier: Apache-2.0

package blocks

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// TestPackRow_AsTheReference takes every binary16, what lies halfway to the next, and the float32s
// beside both.
func TestPackRow_AsTheReference(t *testing.T) {
	var got [2]byte
	for h := range 1 << 16 {
		x := quant.F16ToF32(uint16(h))
		next := quant.F16ToF32(uint16(h) + 1)
		for _, v := range []float32{x, math.Nextafter32(x, next), (x + next) / 2,
			math.Nextafter32((x+next)/2, x), math.Nextafter32((x+next)/2, next)} {
			want := quant.F32ToF16(v)
			if want&0x7fff == 0x7c00 && !math.IsInf(float64(v), 0) {
				want-- // the largest number there is
			}
			PackRow(got[:], quant.Float16, []float32{v})
			require.Equal(t, want, binary.LittleEndian.Uint16(got[:]), "%v", v)
		}
	}
}

// TestFiniteRow has one value that is not finite, or nearly so, at every place of rows of all lengths.
func TestFiniteRow(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for h, want := range map[uint16]bool{0x7c00: false, 0xfc00: false, 0xffff: false, 0x7bff: true, 0xfbff: true,
				0x8000: true} {
				row := make([]byte, 2*n)
				for i := range n {
					binary.LittleEndian.PutUint16(row[2*i:], uint16(0xfbff-i))
				}
				binary.LittleEndian.PutUint16(row[2*at:], h)
				require.Equal(t, want, input.FiniteRow(quant.Float16, row), "%#04x at %d of %d", h, at, n)
			}
		}
	}
}
