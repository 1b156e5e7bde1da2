// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant/layout"
)

// RowError names the row that could not be coded. It unwraps to the cause.
type RowError struct {
	Row int
	Err error
}

// Error names the row and the cause.
func (e *RowError) Error() string { return fmt.Sprintf("kvist/quant: row %d: %v", e.Row, e.Err) }

// Unwrap returns the cause.
func (e *RowError) Unwrap() error { return e.Err }

func checkPacked(c Coding, p []byte, rows, dim int) error {
	if err := c.CheckDim(dim); err != nil {
		return err
	}
	if rows < 0 || rows > math.MaxInt32 {
		return fmt.Errorf("kvist/quant: %d rows: %w", rows, ErrShape)
	}
	if want := c.PackedBytes(rows, dim); len(p) != want {
		return fmt.Errorf("kvist/quant: %d packed bytes for %d rows of %d in %s, want %d: %w",
			len(p), rows, dim, c, want, ErrShape)
	}
	return nil
}

// Encode packs rows. It defines the bytes of every coding.
//
// x: [rows, dim] float32, original basis. dst: exactly c.PackedBytes(rows, dim) bytes, every one
// of which is written; it must not overlap x. seed chooses the rotation of the rotated codings.
//
// Errors: ErrShape, ErrUnsupported; *RowError wrapping ErrRange for a row that the coding cannot
// hold (NaN or Inf where the coding has none, magnitudes beyond its scale). The content of dst is
// then undefined.
func Encode(dst []byte, c Coding, x Rows, seed uint64) error {
	if err := x.Validate(); err != nil {
		return err
	}
	if err := checkPacked(c, dst, x.Len(), x.Dim); err != nil {
		return err
	}
	clear(dst)
	switch f := c.Format; {
	case f.Exact():
		return encodeExact(dst, f, x)
	case f == GGMLQ8_0:
		return encodeGGML(dst, x, ggmlQ80Bytes, putQ80)
	case f == GGMLQ4_0:
		return encodeGGML(dst, x, ggmlQ40Bytes, putQ40)
	}
	return encodeRotated(dst, c, x, seed)
}

func encodeExact(dst []byte, f Format, x Rows) error {
	for i, v := range x.Data {
		switch f {
		case F32:
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
			continue
		case F16:
			h := F32ToF16(v)
			if h&0x7fff == 0x7c00 && finite(v) {
				return &RowError{
					Row: i / x.Dim,
					Err: fmt.Errorf("value %g is beyond binary16 (65504): %w", v, ErrRange),
				}
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		case BF16:
			h := F32ToBF16(v)
			if h&0x7fff == 0x7f80 && finite(v) {
				return &RowError{
					Row: i / x.Dim,
					Err: fmt.Errorf("value %g is beyond bfloat16: %w", v, ErrRange),
				}
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	}
	return nil
}

func encodeRotated(dst []byte, c Coding, x Rows, seed uint64) error {
	rot, err := NewRotation(x.Dim, seed)
	if err != nil {
		return err
	}
	if c.Format == U8 {
		return encodeU8(dst, c, x, rot)
	}
	rows := x.Len()
	scales := make([]float32, rows)
	y, tmp := make([]float32, x.Dim), make([]float32, x.Dim)
	codes := dst[:len(dst)-c.ScaleBytes(rows)]
	for r := range rows {
		exp, err := normalise(y, x.Row(r))
		if err != nil {
			return &RowError{Row: r, Err: err}
		}
		rot.Forward(y)
		var s float32
		if c.Format.Nested() {
			s = encodeNested(codes, c, rows, r, y, tmp)
		} else {
			s = encodeTurboQuant(codes, c.Format, rows, r, y, tmp)
		}
		// An exact power of two, so that rows that differ by one have the same codes.
		scales[r] = float32(s * pow2(exp))
	}
	return putScales(dst[len(codes):], c, scales)
}

// normalise copies x to y times a power of two that puts the largest magnitude into [1, 2), and
// returns the exponent that undoes it, clamped to [-120, 126] so that both factors are normal
// float32s. No later sum or square overflows or underflows.
func normalise(y, x []float32) (int, error) {
	var peak float32
	for _, v := range x {
		if !finite(v) {
			return 0, fmt.Errorf("value %g in a quantized coding: %w", v, ErrRange)
		}
		if v < 0 {
			v = -v
		}
		peak = max(peak, v)
	}
	if peak > MaxMagnitude {
		return 0, fmt.Errorf("value of magnitude %g is beyond 2^111: %w", peak, ErrRange)
	}
	exp := 0
	if peak > 0 {
		_, exp = math.Frexp(float64(peak))
		exp = min(max(exp-1, -120), 126)
	}
	f := pow2(-exp)
	for i, v := range x {
		y[i] = float32(v * f)
	}
	return exp, nil
}

// quantizeCells writes the codes of a rotated row: the sign bit on top, then the number of
// thresholds (in units of sigma) that the magnitude reaches. A row of zeros takes the smallest
// positive code throughout.
func quantizeCells(codes []byte, thresholds []float32, bits, rows, r int, y []float32,
	sigma float32, each func(i int, code uint8)) {
	half := uint8(1) << (bits - 1)
	plane := layout.PlaneBytes(rows, len(y))
	var t [8]float32
	for k, v := range thresholds {
		t[k] = float32(v * sigma)
	}
	for i, v := range y {
		code := half
		if sigma > 0 {
			mag, m := v, uint8(0)
			if v < 0 {
				mag = -v
			}
			for k := 1; k < len(thresholds); k++ {
				if mag >= t[k] {
					m++
				}
			}
			code = half + m
			if v < 0 {
				code = half - 1 - m
			}
		}
		putCode(codes, plane, bits, len(y), r, i, code)
		each(i, code)
	}
}

// energy returns the tree sum of squares of y, using tmp.
func energy(y, tmp []float32) float32 {
	for i, v := range y {
		tmp[i] = float32(v * v)
	}
	return treeSum(tmp[:len(y)])
}

// encodeNested writes the codes of one rotated row in lm1..lm4 and returns its scale.
func encodeNested(codes []byte, c Coding, rows, r int, y, tmp []float32) float32 {
	sumSq := energy(y, tmp)
	sigma := sqrt32(float32(sumSq / float32(len(y))))
	book := layout.Nested(c.Format.Bits())
	var cc int64
	quantizeCells(codes, layout.NestedThresholds(c.Format.Bits()), c.Format.Bits(), rows, r, y, sigma,
		func(i int, code uint8) {
			v := book[code]
			cc += int64(v) * int64(v)
			tmp[i] = float32(y[i] * float32(v))
		})
	if sigma == 0 {
		return 0
	}
	yc := treeSum(tmp[:len(y)])
	return ruleScale(c.Rule, sumSq, yc, float32(cc))
}

// ruleScale is the row scale by rule, from |x|^2, <x,c> and <c,c> with integer centroids c.
func ruleScale(rule ScaleRule, xx, xc, cc float32) float32 {
	var s float32
	switch rule {
	case LengthKeeping:
		s = sqrt32(float32(xx / cc))
	case InnerProduct:
		s = float32(xx / xc)
	default:
		s = float32(xc / cc)
	}
	return float32(s / layout.CentroidUnit) // exact: a power of two
}

// encodeU8 packs rows in u8: symmetric steps of peak/127 in the rotated basis. The codes are
// taken with the scale as it is stored, so that its rounding costs nothing.
func encodeU8(dst []byte, c Coding, x Rows, rot *Rotation) error {
	rows, dim := x.Len(), x.Dim
	codes, tail := dst[:len(dst)-c.ScaleBytes(rows)], dst[len(dst)-c.ScaleBytes(rows):]
	scales := make([]float32, rows)
	y := make([]float32, dim)
	for r := range rows {
		exp, err := normalise(y, x.Row(r))
		if err != nil {
			return &RowError{Row: r, Err: err}
		}
		rot.Forward(y)
		var peak float32
		for _, v := range y {
			peak = max(peak, v, -v)
		}
		scales[r] = float32(float32(float32(peak/127)/layout.CentroidUnit) * pow2(exp))
	}
	if err := putScales(tail, c, scales); err != nil {
		return err
	}
	getScales(scales, c, tail)
	for r := range rows {
		exp, err := normalise(y, x.Row(r))
		if err != nil {
			return &RowError{Row: r, Err: err}
		}
		rot.Forward(y)
		step := float32(float32(scales[r]*pow2(-exp)) * layout.CentroidUnit)
		for i, v := range y {
			q := 0.0
			if step > 0 {
				q = math.RoundToEven(float64(float32(v / step)))
			}
			codes[r*dim+i] = uint8(128 + int(min(max(q, -127), 127)))
		}
	}
	return nil
}
