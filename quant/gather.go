// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant/layout"
)

// Packed is some rows of a packed side.
type Packed struct {
	Data []byte  // PackedBytes(Rows, dim) bytes
	Rows int     // of the side
	Take []int32 // the rows that are taken, in this order; nil: all of them
}

// Len returns the number of rows that are taken.
func (p Packed) Len() int {
	if p.Take == nil {
		return p.Rows
	}
	return len(p.Take)
}

// row returns the row of the side that is taken as number i.
func (p Packed) row(i int) int {
	if p.Take == nil {
		return i
	}
	return int(p.Take[i])
}

// Gather packs rows of packed sides into a new side, in order, without decoding: codes and scales
// are copied as they are. All sides have the coding c, and rotated ones one seed. dst must not
// overlap a source.
//
// Scales in 8-bit logarithms are relative to a base of their side. The new base is the largest of
// the bases of the sides that rows are taken from, compared as bit patterns. Rows of sides with
// this base keep their logarithm. Those of the others get the nearest one, as Encode would store
// them: their scales change by up to 2.2 %, and for u8, whose scales are rounded up, by up to 4.5 %.
//
// dst: c.PackedBytes(rows, dim) bytes for the sum of the rows taken, every one of which is written.
//
// Errors: ErrShape, ErrUnsupported; nothing is written then.
func Gather(dst []byte, c Coding, dim int, src []Packed) error {
	rows := 0
	for i, p := range src {
		if err := checkPacked(c, p.Data, p.Rows, dim); err != nil {
			return fmt.Errorf("kvist/quant: gather: source %d: %w", i, err)
		}
		for j, r := range p.Take {
			if r < 0 || int(r) >= p.Rows {
				return fmt.Errorf("kvist/quant: gather: source %d: row %d of %d at place %d: %w", i, r,
					p.Rows, j, ErrShape)
			}
		}
		rows += p.Len()
	}
	if err := checkPacked(c, dst, rows, dim); err != nil {
		return fmt.Errorf("kvist/quant: gather: %w", err)
	}
	clear(dst)
	planes, rowBytes := planesOf(c, dim)
	base := gatheredBase(c, src)
	at := 0
	for _, p := range src {
		for i := range p.Len() {
			from := p.row(i)
			for k := range planes {
				to := planeAt(c, k, rows, dim) + at*rowBytes
				copy(dst[to:to+rowBytes], p.Data[planeAt(c, k, p.Rows, dim)+from*rowBytes:])
			}
			gatherScale(dst, c, rows, at, p, from, base)
			at++
		}
	}
	if c.Scale == ScaleLog8 && rows > 0 {
		binary.LittleEndian.PutUint32(dst[len(dst)-c.ScaleBytes(rows):], base)
	}
	return nil
}

// planesOf returns how the codes of a side are laid out: planes arrays of rowBytes bytes a row.
func planesOf(c Coding, dim int) (planes, rowBytes int) {
	switch f := c.Format; {
	case f.Exact():
		return 1, dim * f.Bits() / 8
	case f == U8:
		return 1, dim
	case f == GGMLQ8_0:
		return 1, dim / ggmlGroup * ggmlQ80Bytes
	case f == GGMLQ4_0:
		return 1, dim / ggmlGroup * ggmlQ40Bytes
	}
	return c.Format.Bits(), layout.RowPlaneBytes(dim)
}

// planeAt returns the start of array k of planesOf in a side of rows rows.
func planeAt(c Coding, k, rows, dim int) int {
	if k == 0 {
		return 0
	}
	return k * layout.PlaneBytes(rows, dim)
}

// gatheredBase returns the bits of the new base of 8-bit logarithms, 0 for other scales.
func gatheredBase(c Coding, src []Packed) (base uint32) {
	for _, p := range src {
		if c.Scale == ScaleLog8 && p.Len() > 0 {
			base = max(base, binary.LittleEndian.Uint32(p.Data[len(p.Data)-c.ScaleBytes(p.Rows):]))
		}
	}
	return base
}

// gatherScale copies the scale of row from of p to row at of dst.
func gatherScale(dst []byte, c Coding, rows, at int, p Packed, from int, base uint32) {
	if c.ScaleBytes(1) == 0 {
		return
	}
	old, tail := p.Data[len(p.Data)-c.ScaleBytes(p.Rows):], dst[len(dst)-c.ScaleBytes(rows):]
	if c.Scale != ScaleLog8 {
		copy(tail[2*at:2*at+2], old[2*from:])
		return
	}
	tail[4+at] = log8Moved(old[4+from], binary.LittleEndian.Uint32(old), base, c.Format == U8)
}

// log8Moved returns the 8-bit logarithm below the base to of a scale that is k below the base from;
// both are bits of float32. up rounds the scale up, for u8.
func log8Moved(k uint8, from, to uint32, up bool) uint8 {
	if from == to {
		return k
	}
	return log8Code(math.Float32frombits(to), layout.Log8Scale(math.Float32frombits(from), k), up)
}
