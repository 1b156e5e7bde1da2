// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// run is a range of cells of one width.
type run struct {
	width  int
	cells  int
	first  int // component
	offset int // of the first cell in a tile
	// path is the offset of the last path before the run, -1 where there is none.
	path int
}

// Section describes rows whose components are coded along one path of the trellis: a whole row, or its
// head or tail. It is immutable and safe for concurrent use.
type Section struct {
	cells     []uint8
	widths    []uint8
	runs      []run
	tileBytes int
}

// NewSection returns the section of rows whose cells of 16 components have these widths.
//
// Errors: quant.ErrUnsupported for a width above trellis.MaxWidth, or more than 4096 cells.
func NewSection(cells []uint8) (*Section, error) {
	const most = 4096
	if len(cells) > most {
		return nil, fmt.Errorf("kvist/scan: %d cells, want at most %d: %w", len(cells), most, quant.ErrUnsupported)
	}
	s := &Section{cells: cells, widths: trellis.RowWidths(cells), tileBytes: trellis.TileBytes(cells)}
	offset, path := 0, -1
	for i, b := range cells {
		if b > trellis.MaxWidth {
			return nil, fmt.Errorf("kvist/scan: width %d of cell %d, want at most %d: %w", b, i,
				trellis.MaxWidth, quant.ErrUnsupported)
		}
		if b == 0 {
			continue
		}
		if n := len(s.runs); n > 0 && s.runs[n-1].width == int(b) &&
			s.runs[n-1].first+trellis.CellDim*s.runs[n-1].cells == trellis.CellDim*i {
			s.runs[n-1].cells++
		} else {
			s.runs = append(s.runs, run{int(b), 1, trellis.CellDim * i, offset, path})
		}
		path = offset
		offset += trellis.TileBytes(cells[i : i+1])
	}
	return s, nil
}

// Dim returns the number of components.
func (s *Section) Dim() int { return len(s.widths) }

// TileBytes returns the bytes of a tile of 16 rows.
func (s *Section) TileBytes() int { return s.tileBytes }

// Query is a query prepared for the rows of a section: int8 codes, with one scale for every run of cells
// of one width.
type Query struct {
	codes  []int8    // [components of runs], component 4j+g of a cell at 4g+j
	starts []int32   // [runs] what the sum of a run starts from: -trellis.ScanZero * the sum of its codes
	scales []float32 // [runs]
}

// Prepare makes q the query whose product with a row is the sum of y[i] times the row's level i, both in
// components of the section. y must be finite.
//
// Errors: quant.ErrShape, quant.ErrRange.
func (s *Section) Prepare(q *Query, y []float32) error {
	if len(y) != s.Dim() {
		return fmt.Errorf("kvist/scan: query of %d components, want %d: %w", len(y), s.Dim(), quant.ErrShape)
	}
	q.codes = resize(q.codes, s.Dim())[:0]
	q.starts, q.scales = q.starts[:0], q.scales[:0]
	for _, r := range s.runs {
		part := y[r.first : r.first+trellis.CellDim*r.cells]
		var top float32
		for _, v := range part {
			if a := abs(v); !(a <= math.MaxFloat32) {
				return fmt.Errorf("kvist/scan: a query is not finite: %w", quant.ErrRange)
			} else if a > top {
				top = a
			}
		}
		_, unit := trellis.ScanLevels(r.width)
		step := top / 127
		sum := int32(0)
		for i := range part {
			cell, at := i/trellis.CellDim, i%trellis.CellDim
			v := part[trellis.CellDim*cell+4*(at%4)+at/4]
			c := int8(0)
			if step > 0 {
				c = int8(math.RoundToEven(float64(v / step)))
			}
			q.codes = append(q.codes, c)
			sum += int32(c)
		}
		q.starts = append(q.starts, -trellis.ScanZero*sum)
		q.scales = append(q.scales, float32(step*unit))
	}
	return nil
}

func abs(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
