// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// LoadOptions are the options of Load, Open and Read.
type LoadOptions struct {
	ISA string // the instruction set; see scan.Open
	// MaxBytes is the largest file that is read, 0 for no limit: an index takes as much memory as its file.
	MaxBytes int64
}

// Load reads an index from a file into memory.
//
// Errors: those of the file system, and those of Read.
func Load(path string, opts LoadOptions) (*Index, error) {
	f, info, err := atomicfile.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := opts.check(path, info.Size()); err != nil {
		return nil, err
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("kvist/vectors: reading %s: %w", path, err)
	}
	return Read(path, b, opts)
}

func (o LoadOptions) check(path string, size int64) error {
	if o.MaxBytes > 0 && size > o.MaxBytes {
		return fmt.Errorf("kvist/vectors: %s: %d bytes, allowed are %d: %w", path, size, o.MaxBytes, quant.ErrTooLarge)
	}
	return nil
}

// Open maps a file into memory: rows are read when they are compared, and the index takes no memory for them
// until it changes. Close releases the file. Open checks every byte, so it reads the file once. The file must
// not be written to meanwhile; Save replaces files and does no harm. Where files cannot be mapped, Open is Load.
//
// Errors: those of Load.
func Open(path string, opts LoadOptions) (*Index, error) {
	f, info, err := atomicfile.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := opts.check(path, info.Size()); err != nil {
		return nil, err
	}
	b, release, err := mapFile(f, info.Size())
	if err != nil {
		return Load(path, opts)
	}
	x, err := Read(path, b, opts)
	if err != nil {
		_ = release() // the first error counts
		return nil, err
	}
	x.release = release
	return x, nil
}

// Read makes an index of the bytes of a file, which must not change as long as the index is used. name is for
// messages.
//
// Errors: *container.CorruptError (quant.ErrCorrupt), *container.RefusedError (quant.ErrVersion,
// quant.ErrUnsupported, quant.ErrTooLarge).
func Read(name string, file []byte, opts LoadOptions) (*Index, error) {
	r, err := container.OpenVectors(name, bytes.NewReader(file), int64(len(file)), container.Limits{})
	if err != nil {
		return nil, err
	}
	if err := r.Verify(nil); err != nil {
		return nil, err
	}
	list, err := r.Auxes()
	if err != nil {
		return nil, err
	}
	l := &loading{name: name, file: file, tensors: map[string]container.AuxInfo{}}
	for _, t := range list {
		l.tensors[t.Name] = t
	}
	c, s, err := l.coding(r.Header().Seed, opts.ISA)
	if err != nil {
		return nil, err
	}
	for first := 0; first*trellis.TileRows < s.rows; first += chunkTiles {
		l.chunk(c, s, first)
	}
	if l.err != nil {
		return nil, l.err
	}
	if s.rows%trellis.TileRows > 0 { // the last tile stands alone
		last := s.segments[len(s.segments)-1]
		n := c.tilesOf(last) - 1
		s.last = c.grow(&segment{norms: last.norms, ids: last.ids}, 1)
		for r := range s.rows % trellis.TileRows {
			c.copyRow(s.last, r, last, n*trellis.TileRows+r)
		}
		// The memory of the file is never written: the segment ends with its whole tiles.
		s.segments = s.segments[:len(s.segments)-1]
		if n > 0 {
			s.segments = append(s.segments, &segment{head: last.head[: n*c.parts[0].TileBytes() : n*c.parts[0].TileBytes()],
				tail:    last.tail[: n*c.parts[1].TileBytes() : n*c.parts[1].TileBytes()],
				factors: last.factors[: n*trellis.TileRows*c.factorBytes() : n*trellis.TileRows*c.factorBytes()],
				norms:   last.norms[:min(len(last.norms), n*trellis.TileRows)], ids: last.ids[:min(len(last.ids), n*trellis.TileRows)]})
			if g := s.segments[len(s.segments)-1]; len(g.norms) == 0 {
				g.norms = nil
			}
			if g := s.segments[len(s.segments)-1]; len(g.ids) == 0 {
				g.ids = nil
			}
		}
	}
	if !s.dense {
		if err := l.ids(s); err != nil {
			return nil, err
		}
	}
	x := newIndex(c)
	x.state.Store(s)
	return x, nil
}

// loading reads the side tensors of a file. It keeps the first error.
type loading struct {
	name    string
	file    []byte
	tensors map[string]container.AuxInfo
	err     error
}

// fail reports a field that is not what a writer writes.
func (l *loading) fail(tensor, what string, want, got any) {
	if l.err == nil {
		l.err = &container.CorruptError{File: l.name, Section: "side tensor", Layer: -1, Segment: -1, Head: -1, Block: -1,
			Offset: l.tensors[tensor].Offset, Want: want, Got: got, Err: fmt.Errorf("%s: %s: %w", tensor, what, quant.ErrCorrupt)}
	}
}

// tensor returns the bytes of a tensor of this type and shape, in place.
func (l *loading) tensor(name, dtype string, shape ...int) []byte {
	if l.err != nil {
		return nil
	}
	t, ok := l.tensors[name]
	want := make([]int64, len(shape))
	for i, n := range shape {
		want[i] = int64(n)
	}
	switch {
	case !ok:
		l.fail(name, "tensor is missing", nil, nil)
	case t.DType != dtype || !slices.Equal(t.Shape, want):
		l.fail(name, "type and shape", fmt.Sprint(dtype, want), fmt.Sprint(t.DType, t.Shape))
	case t.Payload < 0:
		l.fail(name, "encoding", "plain", "another")
	default:
		return l.file[t.Payload : t.Payload+t.Decoded : t.Payload+t.Decoded]
	}
	return nil
}

func (l *loading) floats(name string, n int) []float32 {
	b := l.tensor(name, "F32", n)
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		if !(math.Abs(float64(out[i])) <= math.MaxFloat32) {
			l.fail(name, "a number is not finite", nil, out[i])
		}
	}
	return out
}

// coding reads what describes the coding, and the number of rows.
func (l *loading) coding(seed uint64, isa string) (*coding, *state, error) {
	b := l.tensor("numbers", "F64", numNumbers)
	if l.err != nil {
		return nil, nil, l.err
	}
	v := make([]float64, numNumbers)
	for i := range v {
		v[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	integer := func(i int, lo, hi float64) int {
		if !(v[i] >= lo && v[i] <= hi) || v[i] != math.Trunc(v[i]) {
			l.fail("numbers", fmt.Sprintf("number %d", i), fmt.Sprintf("an integer from %g to %g", lo, hi), v[i])
			return 0
		}
		return int(v[i])
	}
	number := func(i int, lo, hi float64) float64 {
		if !(v[i] >= lo && v[i] <= hi) {
			l.fail("numbers", fmt.Sprintf("number %d", i), fmt.Sprintf("from %g to %g", lo, hi), v[i])
		}
		return v[i]
	}
	const large = 1e30
	cells := 0
	if t, ok := l.tensors["cells"]; ok && len(t.Shape) == 1 {
		cells = int(min(t.Shape[0], maxDim))
	}
	p := params{Dim: integer(numDim, 1, maxDim), Metric: Metric(integer(numMetric, 0, float64(metrics-1))), Seed: seed,
		Rotated: integer(numRotated, 0, 1) == 1, Head: integer(numHead, 1, float64(max(1, cells))),
		Length: float32(number(numLength, leastLength, large)), Slope: float32(number(numSlope, 0, 1e3)),
		Top: number(numTop, 0, large), Ratio: number(numRatio, 0, 1), Error: number(numError, 0, large)}
	s := &state{ids: &idMap{}, rows: integer(numRows, 0, maxRows), dense: integer(numDense, 0, 1) == 1,
		stats: added{integer(numAdded, 0, 1<<53), integer(numBounded, 0, 1<<53), number(numEnergy, 0, math.MaxFloat64),
			number(numDamage, 0, math.MaxFloat64)}}
	p.Cells = l.tensor("cells", "U8", cells)
	for i, b := range p.Cells {
		if b > trellis.MaxWidth {
			l.fail("cells", fmt.Sprintf("width of cell %d", i), trellis.MaxWidth, b)
		}
	}
	if n := (p.Dim + trellis.CellDim - 1) / trellis.CellDim; cells < 1 || cells > n || p.Rotated && cells != n {
		l.fail("cells", "cells of rows of this dim", n, cells)
	}
	var axes []int8
	var scales []float32
	if p.Rotated {
		p.SD = slices.Repeat([]float32{1}, p.comps())
	} else {
		p.Mean, p.SD = l.floats("mean", p.Dim), l.floats("sd", p.comps())
		n := min(p.Dim, p.comps())
		scales = l.floats("axes.scale", n)
		for _, v := range l.tensor("axes", "I8", n, p.Dim) {
			axes = append(axes, int8(v))
		}
		for i, v := range p.SD {
			if !(v > 0 && v <= 10*maxValue) {
				l.fail("sd", fmt.Sprintf("deviation %d", i), "above 0, at most 1e16", v)
			}
		}
	}
	for i, v := range scales {
		if !(v >= 0 && v <= 1) {
			l.fail("axes.scale", fmt.Sprintf("scale %d", i), "from 0 to 1", v)
		}
	}
	for i, v := range p.Mean {
		if !(math.Abs(float64(v)) <= maxValue) {
			l.fail("mean", fmt.Sprintf("value %d", i), "at most 1e15", v)
		}
	}
	if l.err != nil {
		return nil, nil, l.err
	}
	c, err := p.finish(axes, scales, isa)
	return c, s, err
}

// chunk adds the segments of the tiles from first on.
func (l *loading) chunk(c *coding, s *state, first int) {
	const rows = trellis.TileRows
	all := (s.rows + rows - 1) / rows
	n := min(chunkTiles, all-first)
	name := func(what string) string { return fmt.Sprintf("%s.%d", what, first/chunkTiles) }
	g := segment{head: l.tensor(name("head"), "U8", n, c.parts[0].TileBytes()),
		factors: l.tensor(name("factor"), "U8", rows*n, c.factorBytes())}
	if b := c.parts[1].TileBytes(); b > 0 {
		g.tail = l.tensor(name("tail"), "U8", n, b)
	}
	if c.params.Metric == L2 {
		g.norms = l.floats(name("norm"), rows*n)
	}
	if !s.dense {
		b := l.tensor(name("id"), "U64", rows*n)
		g.ids = make([]uint64, len(b)/8)
		for i := range g.ids {
			g.ids[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
	}
	if c.table == nil {
		for i := 0; i+1 < len(g.factors); i += 2 {
			if g.factors[i+1]&0x7f == 0x7f && g.factors[i]&0x80 != 0 {
				l.fail(name("factor"), fmt.Sprintf("factor %d is not finite", i/2), nil, nil)
			}
		}
	}
	if l.err != nil {
		return
	}
	for t := 0; t < n; t += segmentTiles {
		m := min(segmentTiles, n-t)
		cut := func(b []byte, size int) []byte { return b[t*size : (t+m)*size : (t+m)*size] }
		part := &segment{head: cut(g.head, c.parts[0].TileBytes()), tail: cut(g.tail, c.parts[1].TileBytes()),
			factors: cut(g.factors, rows*c.factorBytes())}
		if g.norms != nil {
			part.norms = g.norms[rows*t : rows*(t+m) : rows*(t+m)]
		}
		if g.ids != nil {
			part.ids = g.ids[rows*t : rows*(t+m) : rows*(t+m)]
		}
		s.segments = append(s.segments, part)
	}
}

// ids enters the ids, which must differ.
func (l *loading) ids(s *state) error {
	seen := make([]uint64, s.rows)
	for r := range seen {
		seen[r] = s.id(r)
	}
	slices.Sort(seen)
	for i := 1; i < len(seen); i++ {
		if seen[i] == seen[i-1] {
			l.fail("id.0", "id given twice", nil, seen[i])
			return l.err
		}
	}
	s.ids.add(s, 0)
	return nil
}
