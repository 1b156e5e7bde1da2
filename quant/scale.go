// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant/layout"
)

// log8Code returns the nearest logarithm: the count of midpoints that s lies below, at most 254.
// A scale that is not zero never becomes zero. With up, it is the smallest scale that is not
// below s.
func log8Code(base, s float32, up bool) uint8 {
	if s == 0 {
		return layout.Log8Zero
	}
	k := 0
	for k < 254 {
		bound := layout.Log8Bound(base, uint8(k))
		if up {
			bound = layout.Log8Scale(base, uint8(k+1))
		}
		if s > bound || (s == bound && !up) {
			break
		}
		k++
	}
	return uint8(k)
}

// pow2 returns 2^e exactly, for e in [-149, 127].
func pow2(e int) float32 { return float32(math.Ldexp(1, e)) }

// putScales stores the row scales in the coding's form.
//
// Errors: *RowError wrapping ErrRange where a scale is beyond the form's range.
func putScales(dst []byte, c Coding, scales []float32) error {
	if len(scales) == 0 {
		return nil
	}
	if c.Scale == ScaleF16 {
		for r, s := range scales {
			h := F32ToF16(s)
			if h&0x7c00 == 0x7c00 {
				return &RowError{
					Row: r,
					Err: fmt.Errorf(
						"row scale %g is beyond binary16 (65504); a coding with +s8 has the range of float32: %w",
						s,
						ErrRange,
					),
				}
			}
			binary.LittleEndian.PutUint16(dst[2*r:], h)
		}
		return nil
	}
	var base float32
	for r, s := range scales {
		if !finite(s) {
			return &RowError{
				Row: r,
				Err: fmt.Errorf("row scale %g is beyond float32: %w", s, ErrRange),
			}
		}
		base = max(base, s)
	}
	binary.LittleEndian.PutUint32(dst, math.Float32bits(base))
	for r, s := range scales {
		// u8 clips what lies beyond its scale, so its scales are rounded up.
		dst[4+r] = log8Code(base, s, c.Format == U8)
	}
	return nil
}

// getScales decodes the row scales.
func getScales(dst []float32, c Coding, src []byte) {
	if c.Scale == ScaleLog8 && len(dst) > 0 {
		base := math.Float32frombits(binary.LittleEndian.Uint32(src))
		for r := range dst {
			dst[r] = layout.Log8Scale(base, src[4+r])
		}
		return
	}
	for r := range dst {
		dst[r] = F16ToF32(binary.LittleEndian.Uint16(src[2*r:]))
	}
}

// RowScales decodes the row scale of every row of a packed side. Block.Noise of a backend is
// relative to it. For u8 and lm1..lm4 a value is scale*centroid/64; for tqmse it is
// scale*centroid, with scale the root mean square of the row. Codings without a row scale give 0.
//
// Errors: ErrShape, ErrUnsupported.
func RowScales(dst []float32, c Coding, src []byte, rows, dim int) error {
	if err := checkPacked(c, src, rows, dim); err != nil {
		return err
	}
	if len(dst) != rows {
		return fmt.Errorf("kvist/quant: row scales: room for %d, want %d: %w", len(dst), rows,
			ErrShape)
	}
	tail := src[len(src)-c.ScaleBytes(rows):]
	switch {
	case c.Format == U8 || c.Format.Nested():
		getScales(dst, c, tail)
	case c.Format >= TQMSE1 && c.Format <= TQMSE4:
		getScales(dst, c, tail)
		for r := range dst {
			dst[r] = float32(dst[r] / sqrt32(float32(dim)))
		}
	default:
		clear(dst)
	}
	return nil
}
