// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"
)

// ggml's block formats, byte for byte: groups of 32 values along the row, in no rotated basis.
//
// Source: ggml, ggml-quants.c, quantize_row_q8_0_ref and quantize_row_q4_0_ref. ggml calls a
// group a "block". Not defined there and defined here: values that are not finite, and scales
// that binary16 cannot hold, are refused; a scale so small that its inverse overflows counts as 0.
const (
	ggmlGroup    = 32
	ggmlQ80Bytes = 34
	ggmlQ40Bytes = 18
)

func encodeGGML(dst []byte, x Rows, groupBytes int, put func(dst []byte, g []float32) error) error {
	groups := x.Dim / ggmlGroup
	for r := range x.Len() {
		row := x.Row(r)
		for g := range groups {
			at := (r*groups + g) * groupBytes
			if err := put(dst[at:at+groupBytes], row[g*ggmlGroup:(g+1)*ggmlGroup]); err != nil {
				return &RowError{Row: r, Err: err}
			}
		}
	}
	return nil
}

// ggmlScale stores d as binary16 and returns 1/d.
func ggmlScale(dst []byte, d float32) (float32, error) {
	h := F32ToF16(d)
	if h&0x7c00 == 0x7c00 {
		return 0, fmt.Errorf("group scale %g is beyond binary16: %w", d, ErrRange)
	}
	binary.LittleEndian.PutUint16(dst, h)
	if d == 0 {
		return 0, nil
	}
	id := float32(1 / d)
	if !finite(id) {
		return 0, nil
	}
	return id, nil
}

// putQ80 packs one group: f16 d = max|x|/127, then 32 x int8 round(x/d), halves away from zero.
func putQ80(dst []byte, g []float32) error {
	var amax float32
	for _, v := range g {
		if !finite(v) {
			return fmt.Errorf("value %g in ggml-q8_0: %w", v, ErrRange)
		}
		amax = max(amax, float32(math.Abs(float64(v))))
	}
	id, err := ggmlScale(dst, float32(amax/127))
	if err != nil {
		return err
	}
	for i, v := range g {
		dst[2+i] = byte(int8(math.Round(float64(float32(v * id)))))
	}
	return nil
}

// putQ40 packs one group: f16 d = (value of largest magnitude)/-8, then 16 bytes: low nibbles
// values 0..15, high nibbles values 16..31, each min(15, trunc(x/d + 8.5)).
func putQ40(dst []byte, g []float32) error {
	var amax, peak float32
	for _, v := range g {
		if !finite(v) {
			return fmt.Errorf("value %g in ggml-q4_0: %w", v, ErrRange)
		}
		if a := float32(math.Abs(float64(v))); amax < a {
			amax, peak = a, v
		}
	}
	id, err := ggmlScale(dst, float32(peak/-8))
	if err != nil {
		return err
	}
	for i := range 16 {
		lo := min(15, int8(float32(float32(g[i]*id)+8.5)))
		hi := min(15, int8(float32(float32(g[16+i]*id)+8.5)))
		dst[2+i] = byte(lo) | byte(hi)<<4
	}
	return nil
}

// decodeGGML unpacks one row.
func decodeGGML(dst []float32, f Format, src []byte) {
	for g := range len(dst) / ggmlGroup {
		out := dst[g*ggmlGroup : (g+1)*ggmlGroup]
		if f == GGMLQ8_0 {
			b := src[g*ggmlQ80Bytes:]
			d := F16ToF32(binary.LittleEndian.Uint16(b))
			for i := range out {
				out[i] = float32(float32(int8(b[2+i])) * d)
			}
			continue
		}
		b := src[g*ggmlQ40Bytes:]
		d := F16ToF32(binary.LittleEndian.Uint16(b))
		for i := range 16 {
			out[i] = float32(float32(int(b[2+i]&15)-8) * d)
			out[16+i] = float32(float32(int(b[2+i]>>4)-8) * d)
		}
	}
}
