// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/engine/internal/half"
	"github.com/kvist-project/kvist/quant"
)

// rowDType returns the element type of rows of a stored type, or DTypeInvalid if the stored type
// has no rows. It is the stored type itself, or the smallest type that holds all of its values:
// binary16 for I8 and the two 8-bit floats. F64 is rounded to float32; see f64.
func rowDType(stored string) quant.DType {
	switch stored {
	case "F32", "F64":
		return quant.Float32
	case "F16", "F8_E4M3", "F8_E5M2", "I8":
		return quant.Float16
	case "BF16":
		return quant.BFloat16
	}
	return quant.DTypeInvalid
}

// rowDTypes lists the types for messages.
const rowDTypes = "F16, BF16, F32, F64, F8_E4M3 or F8_E5M2"

// storedSize returns the size of one stored element of a type that has rows.
func storedSize(stored string) int { return int(dtypes[dtypeRank(stored)].bits / 8) }

// conversion converts stored elements to the element type of the rows. If an element cannot be
// converted, at is its index and v its value.
type conversion struct {
	exact bool // also refuse values that rounding changes
	at    int
	v     float64
}

// plain reports whether rows of the stored type are returned unchanged.
func plain(stored string) bool { return rowDType(stored).String() == stored }

// f32 converts to float32. ok is false if an element cannot be converted.
func (c *conversion) f32(stored string, dst []float32, raw []byte) (ok bool) {
	switch stored {
	case "F64":
		for i := range dst {
			if dst[i], ok = c.f64(binary.LittleEndian.Uint64(raw[8*i:])); !ok {
				c.at = i
				return false
			}
		}
	case "I8":
		for i := range dst {
			dst[i] = float32(int8(raw[i]))
		}
	case "F8_E4M3", "F8_E5M2":
		for i := range dst {
			dst[i] = quant.F16ToF32(f8ToF16(stored, raw[i]))
		}
	default:
		convertF32(rowDType(stored), dst, raw)
	}
	return true
}

// raw converts to elements of rowDType(stored), little-endian; dst has count of them.
func (c *conversion) raw(stored string, dst, raw []byte) (ok bool) {
	switch stored {
	case "F64":
		for i := range len(raw) / 8 {
			f, ok := c.f64(binary.LittleEndian.Uint64(raw[8*i:]))
			if !ok {
				c.at = i
				return false
			}
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(f))
		}
	case "I8":
		for i, b := range raw {
			binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(float32(int8(b))))
		}
	case "F8_E4M3", "F8_E5M2":
		for i, b := range raw {
			binary.LittleEndian.PutUint16(dst[2*i:], f8ToF16(stored, b))
		}
	}
	return true
}

// f64 rounds a double to float32. A finite value beyond float32 cannot be converted. A value below
// its range becomes zero or subnormal.
func (c *conversion) f64(bits uint64) (float32, bool) {
	v := math.Float64frombits(bits)
	f := float32(v)
	c.v = v
	if c.exact {
		return f, math.Float64bits(float64(f)) == bits
	}
	return f, !math.IsInf(float64(f), 0) || math.IsInf(v, 0)
}

// f8ToF16 widens an 8-bit float exactly. F8_E5M2 is the upper half of a binary16. F8_E4M3 has no
// infinities; all bits but the sign set means NaN. Source: FP8 Formats for Deep Learning, 2022,
// arXiv 2209.05433, section 3.
func f8ToF16(stored string, b byte) uint16 {
	if stored == "F8_E5M2" {
		return uint16(b) << 8
	}
	sign, exp, mant := uint16(b&0x80)<<8, uint16(b>>3&15), uint16(b&7)
	switch {
	case b&0x7f == 0x7f:
		return sign | 0x7e00
	case exp == 0: // mant * 2^-9, which is normal in binary16
		if mant == 0 {
			return sign
		}
		exp = 1
		for ; mant&8 == 0; mant <<= 1 {
			exp--
		}
		mant &= 7
	}
	return sign | (exp+8)<<10 | mant<<7 // the biases are 7 and 15
}

// convertF32 converts len(dst) elements, exactly.
func convertF32(dtype quant.DType, dst []float32, raw []byte) {
	switch dtype {
	case quant.Float32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case quant.Float16:
		half.Widen(dst, raw)
	case quant.BFloat16:
		for i := range dst {
			dst[i] = quant.BF16ToF32(binary.LittleEndian.Uint16(raw[2*i:]))
		}
	}
}
