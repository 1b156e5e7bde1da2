// SPDX-License-Identifier: Apache-2.0

package trellis

import (
	"encoding/binary"
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// The layout of packed rows.
const (
	// TileRows is the number of rows that are packed together.
	TileRows = 16
	// CellDim is the number of components of a cell, which have one width.
	CellDim = 16
	// cellBytesPerBit is TileRows * CellDim bits.
	cellBytesPerBit = TileRows * CellDim / 8
)

// TileBytes returns the bytes of a tile of rows whose cells have these widths.
func TileBytes(cells []uint8) int {
	n := 0
	for _, b := range cells {
		n += cellBytesPerBit * int(b)
	}
	return n
}

// RowWidths returns the width of every component of rows whose cells have these widths.
func RowWidths(cells []uint8) []uint8 {
	w := make([]uint8, 0, CellDim*len(cells))
	for _, b := range cells {
		for range CellDim {
			w = append(w, b)
		}
	}
	return w
}

// A part is a plane of a cell: bits of the code of every component, for all rows.
type part struct{ offset, lo, bits int }

// parts returns the planes of a cell of a width: the path first, then four, two or one more bits each.
func parts(width int) []part {
	p := []part{{0, 0, 1}}
	offset, lo := cellBytesPerBit, 1
	for _, bits := range [...]int{4, 2, 1} {
		if (width-1)&bits != 0 {
			p = append(p, part{offset, lo, bits})
			offset, lo = offset+cellBytesPerBit*bits, lo+bits
		}
	}
	return p
}

// place returns the byte of a plane that holds component t of a row, and the bit where its bits start.
func (p part) place(row, t int) (at, shift int) {
	j, g := t/4, t%4
	switch p.bits {
	case 1: // a word of 16 bits for each row, components in order
		return p.offset + 2*row + t/8, t % 8
	case 2: // a word of 32 bits for each row, byte j: components 4j+2, 4j+3, 4j, 4j+1
		return p.offset + 4*row + j, (2*g + 4) % 8
	default: // two vectors of 16 words of 32 bits: components 4j and 4j+1, then 4j+2 and 4j+3
		return p.offset + 64*(g/2) + 4*row + j, 4 * (g % 2)
	}
}

// PutRow writes the codes of a row, [CellDim*len(cells)], into a tile.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for a width, quant.ErrRange for a code that its width does
// not have. The tile is then unchanged.
func PutRow(tile []byte, cells []uint8, row int, codes []uint8) error {
	if err := checkTile(tile, cells, row, len(codes)); err != nil {
		return err
	}
	for i, c := range codes {
		if b := cells[i/CellDim]; int(c)>>b != 0 {
			return fmt.Errorf("kvist/trellis: code %d of component %d has more than %d bits: %w", c, i, b,
				quant.ErrRange)
		}
	}
	for i, b := range cells {
		cell := tile[:cellBytesPerBit*int(b)]
		for _, p := range planesOf[b] {
			for t, c := range codes[CellDim*i : CellDim*(i+1)] {
				at, shift := p.place(row, t)
				mask := byte(1)<<p.bits - 1
				cell[at] = cell[at]&^(mask<<shift) | (c>>p.lo&mask)<<shift
			}
		}
		tile = tile[len(cell):]
	}
	return nil
}

// Row reads the codes of a row of a tile.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for a width.
func Row(codes []uint8, tile []byte, cells []uint8, row int) error {
	if err := checkTile(tile, cells, row, len(codes)); err != nil {
		return err
	}
	clear(codes)
	for i, b := range cells {
		cell := tile[:cellBytesPerBit*int(b)]
		for _, p := range planesOf[b] {
			for t := range CellDim {
				at, shift := p.place(row, t)
				codes[CellDim*i+t] |= cell[at] >> shift & (1<<p.bits - 1) << p.lo
			}
		}
		tile = tile[len(cell):]
	}
	return nil
}

// planesOf are the parts of each width.
var planesOf = [MaxWidth + 1][]part{1: parts(1), parts(2), parts(3), parts(4), parts(5), parts(6)}

func checkTile(tile []byte, cells []uint8, row, codes int) error {
	for i, b := range cells {
		if b > MaxWidth {
			return fmt.Errorf("kvist/trellis: width %d of cell %d, want at most %d: %w", b, i, MaxWidth,
				quant.ErrUnsupported)
		}
	}
	if n := TileBytes(cells); len(tile) != n || row < 0 || row >= TileRows || codes != CellDim*len(cells) {
		return fmt.Errorf("kvist/trellis: row %d of %d codes, tile of %d bytes, want %d codes and %d bytes: %w",
			row, codes, len(tile), CellDim*len(cells), n, quant.ErrShape)
	}
	return nil
}

// Path returns the 16 bits of the path of a row in a cell.
func Path(cell []byte, row int) uint16 { return binary.LittleEndian.Uint16(cell[2*row:]) }

// CopyRow copies a row of a tile over a row of another tile with the same cells.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for a width.
func CopyRow(dst []byte, to int, src []byte, from int, cells []uint8) error {
	if err := checkTile(dst, cells, to, CellDim*len(cells)); err != nil {
		return err
	}
	if err := checkTile(src, cells, from, CellDim*len(cells)); err != nil {
		return err
	}
	for _, b := range cells {
		for _, p := range planesOf[b] {
			n := 2 * min(p.bits, 2) // bytes of a row in a vector
			for v := p.offset; v < p.offset+cellBytesPerBit*p.bits; v += n * TileRows {
				copy(dst[v+n*to:v+n*to+n], src[v+n*from:])
			}
		}
		dst, src = dst[cellBytesPerBit*int(b):], src[cellBytesPerBit*int(b):]
	}
	return nil
}
