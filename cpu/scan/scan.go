// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// kernels are the kernels of one instruction set.
type kernels struct {
	isa string
	// scores is one query on the tiles of a section, of which out holds 16 scores each.
	scores func(out []float32, s *Section, tiles []byte, q *Query, scratch []uint8)
	unpack func(dst []uint8, tile []byte, r *run)
	// pack interleaves the codes of queries for dots; nil if it takes them as they are.
	pack func(p *packed, s *Section, qs []*Query)
	// dots writes the scores of every query, [queries][stride], from the levels of one tile.
	dots   func(out []float32, stride int, s *Section, levels []uint8, qs []*Query, p *packed)
	finish func(masks []uint16, scores []float32, f *Factors, norms []float32, threshold float32)
	search func(p *paths, x []float32, widths []uint8)
}

func genericKernels() *kernels {
	return &kernels{"generic", scoresGeneric, unpackGeneric, nil, dotsOfGeneric, finishGeneric, searchGeneric}
}

func dotsOfGeneric(out []float32, stride int, s *Section, levels []uint8, qs []*Query, _ *packed) {
	for k, q := range qs {
		row := (*[trellis.TileRows]float32)(out[k*stride:])
		clear(row[:])
		at := 0
		for i := range s.runs {
			n := trellis.CellDim * s.runs[i].cells
			dotsGeneric(row, levels[16*at:16*(at+n)], q.codes[at:at+n], q.starts[i], q.scales[i])
			at += n
		}
	}
}

// Options are the options of Open. The zero value means the best instruction set.
type Options struct {
	ISA string // "", "generic", "avx2" or "avx512"
}

// Engine scans and encodes with the kernels of one instruction set. It is safe for concurrent use.
type Engine struct {
	k       *kernels
	scratch sync.Pool // of *scratch
}

type scratch struct {
	levels []uint8
	x      []float32
	paths  paths
	packed packed
}

// packed are the queries of a batch in groups, whose codes are interleaved.
type packed struct {
	codes  []int8    // [groups][vectors of runs][queries of a group][4]
	starts []int32   // [groups][runs][queries of a group]
	scales []float32 // the same
	out    []float32 // [queries of a group][16], where a group is not full
}

// Supported returns the instruction sets that this build has kernels for and this machine can run, the best
// first; "generic" is always the last.
func Supported() []string {
	var names []string
	for _, k := range native() {
		names = append(names, k.isa)
	}
	return append(names, "generic")
}

// Open returns an engine.
//
// Errors: quant.ErrUnavailable for an instruction set that this build or machine does not have,
// quant.ErrUnsupported for one that kvist does not know.
func Open(opts Options) (*Engine, error) {
	list := append(native(), genericKernels())
	at := slices.IndexFunc(list, func(k *kernels) bool { return opts.ISA == "" || k.isa == opts.ISA })
	if at < 0 {
		cause := quant.ErrUnsupported
		if opts.ISA == "avx2" || opts.ISA == "avx512" {
			cause = quant.ErrUnavailable
		}
		return nil, fmt.Errorf("kvist/scan: instruction set %q, this machine has %s: %w", opts.ISA,
			strings.Join(Supported(), ", "), cause)
	}
	return &Engine{k: list[at], scratch: sync.Pool{New: func() any { return new(scratch) }}}, nil
}

// ISA names the instruction set.
func (e *Engine) ISA() string { return e.k.isa }

// Scores writes the product of every query with every row: scores is [queries][rows] for 16 rows in each
// tile. The product is that of the query's codes with the row's levels of 7 bits: sums of integers, times
// the scale of a run, added run by run in float32. So it is the same on every instruction set.
//
// Errors: quant.ErrShape.
func (e *Engine) Scores(scores []float32, s *Section, tiles []byte, qs []*Query) error {
	n := 0
	if s.tileBytes > 0 {
		n = len(tiles) / s.tileBytes
	}
	rows := n * trellis.TileRows
	if n*s.tileBytes != len(tiles) || len(scores) != rows*len(qs) {
		return fmt.Errorf("kvist/scan: %d scores of %d queries, %d bytes in tiles of %d: %w", len(scores), len(qs),
			len(tiles), s.tileBytes, quant.ErrShape)
	}
	for _, q := range qs {
		if len(q.scales) != len(s.runs) || len(q.codes) != s.coded() {
			return fmt.Errorf("kvist/scan: a query was prepared for another section: %w", quant.ErrShape)
		}
	}
	w := e.scratch.Get().(*scratch)
	defer e.scratch.Put(w)
	w.levels = resize(w.levels, 16*s.Dim())
	if len(qs) < 3 {
		for k, q := range qs {
			e.k.scores(scores[k*rows:(k+1)*rows], s, tiles, q, w.levels)
		}
		return nil
	}
	if e.k.pack != nil {
		e.k.pack(&w.packed, s, qs)
	}
	for t := range n {
		tile := tiles[t*s.tileBytes:][:s.tileBytes]
		at := 0
		for i := range s.runs {
			r := &s.runs[i]
			e.k.unpack(w.levels[16*at:16*(at+trellis.CellDim*r.cells)], tile, r)
			at += trellis.CellDim * r.cells
		}
		e.k.dots(scores[t*trellis.TileRows:], rows, s, w.levels, qs, &w.packed)
	}
	return nil
}

// coded returns the number of components of all runs.
func (s *Section) coded() (n int) {
	for _, r := range s.runs {
		n += trellis.CellDim * r.cells
	}
	return n
}

// Factors are the factors of rows, in one or two bytes.
type Factors struct {
	Codes []byte
	// Table has the factor of every code of one byte. Where it is nil, codes are bfloat16 numbers.
	Table *[256]float32
}

// Finish turns scores into keys: it multiplies the score of every row by the row's factor and takes off
// its norm, unless norms is nil. Bit r of masks[t] says whether row 16t+r is above the threshold.
//
// Errors: quant.ErrShape.
func (e *Engine) Finish(masks []uint16, scores []float32, f Factors, norms []float32, threshold float32) error {
	n, size := len(masks)*trellis.TileRows, 2
	if f.Table != nil {
		size = 1
	}
	if len(scores) != n || len(f.Codes) != n*size || norms != nil && len(norms) != n {
		return fmt.Errorf("kvist/scan: %d tiles, %d scores, %d norms, factors of %d bytes: %w", len(masks),
			len(scores), len(norms), len(f.Codes), quant.ErrShape)
	}
	if n > 0 {
		e.k.finish(masks, scores, &f, norms, threshold)
	}
	return nil
}

// Encode writes the codes of 16 rows, x [16][dim] in standard deviations, into a tile. They are those of
// trellis.Encode. levels [16][dim], unless it is nil, receives the values that the codes stand for.
//
// Errors: quant.ErrShape; quant.ErrRange for a value that is not finite. The tile is then undefined.
func (e *Engine) Encode(tile []byte, s *Section, x, levels []float32) error {
	dim := s.Dim()
	if len(tile) != s.tileBytes || len(x) != trellis.TileRows*dim || levels != nil && len(levels) != len(x) {
		return fmt.Errorf("kvist/scan: tile of %d bytes, %d values, %d levels, want %d bytes and %d values: %w",
			len(tile), len(x), len(levels), s.tileBytes, trellis.TileRows*dim, quant.ErrShape)
	}
	w := e.scratch.Get().(*scratch)
	defer e.scratch.Put(w)
	w.x = resize(w.x, len(x))
	p := &w.paths
	p.from, p.members = resize(p.from, 8*dim), resize(p.members, 64*dim)
	for r := range trellis.TileRows {
		for i, v := range x[r*dim : (r+1)*dim] {
			w.x[16*i+r] = v
		}
	}
	e.k.search(p, w.x, s.widths)
	for r := 0; r < trellis.TileRows; r += lanes {
		if bad := p.trace(tile, s, r, levels); bad >= 0 {
			return fmt.Errorf("kvist/scan: encode: row %d of a tile is not finite or too large: %w", bad,
				quant.ErrRange)
		}
	}
	return nil
}

// Row writes the values that the codes of a row of a tile stand for.
//
// Errors: quant.ErrShape.
func (e *Engine) Row(dst []float32, s *Section, tile []byte, row int) error {
	if len(dst) != s.Dim() || len(tile) != s.tileBytes || row < 0 || row >= trellis.TileRows {
		return fmt.Errorf("kvist/scan: row %d, %d values, tile of %d bytes, want %d values and %d bytes: %w", row,
			len(dst), len(tile), s.Dim(), s.tileBytes, quant.ErrShape)
	}
	s.row(dst, tile, row)
	return nil
}
