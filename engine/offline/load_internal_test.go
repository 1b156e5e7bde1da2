// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

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
			packRow(got[:], quant.Float16, []float32{v})
			require.Equal(t, want, binary.LittleEndian.Uint16(got[:]), "%v", v)
		}
	}
}
