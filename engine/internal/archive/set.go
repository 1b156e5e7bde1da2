// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/quant"
)

// Set holds transforms and the tables that belong to them: those of a profile, or of a file without
// one.
type Set struct {
	Tables *Tables
	Heads  int // KV heads
	Sides  int // 2: K and V; 1: rows
	// Layers are the model's numbers, ascending; Transforms is [layers][heads*sides].
	Layers     []int
	Transforms [][]*Transform
	// Predictors is [layers][heads*sides], nil where a lane has none; nil for a set without any.
	Predictors [][]*Predictor

	plain *Set       // without predictors, whose transforms it shares; nil: the set itself
	mu    sync.Mutex // a set may be used by many codecs
}

// prepare prepares the transforms once, on all cores.
func (s *Set) prepare(encode bool) error {
	if s.plain != nil {
		return s.plain.prepare(encode)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(s.Transforms)) // of layers
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(s.Transforms)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(errs)); i = next.Add(1) - 1 {
				for _, t := range s.Transforms[i] {
					if err := t.prepare(encode); err != nil {
						errs[i] = err
						break
					}
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// MaxBasisDim is the most components of a basis.
const MaxBasisDim = 1 << 11

// AppendTables appends the tables: u8 1, then what they hold.
func (s *Set) AppendTables(dst []byte) []byte { return appendTables(append(dst, 1), s.Tables) }

// setVersion is the version of transforms. In version 1 all means were f16.
const setVersion = 2

// Append appends the transforms, little-endian: u8 2, u8 sides, u16 heads, u32 layers, then for
// each layer u32 number and for each transform u32 dim, u8 kind, f32 gain, means, i16 deviations,
// f32 scales and, with a basis, i8 components. Means are f16 where that holds all of them exactly, else f32,
// and 128 is added to the kind. Kinds: 0 values as they stand in the row, 1 a basis, 2
// values in the order of their deviations, which stand as those of kind 0 do.
func (s *Set) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, setVersion, byte(s.Sides))
	dst = le.AppendUint16(dst, uint16(s.Heads))
	dst = le.AppendUint32(dst, uint32(len(s.Layers)))
	for i, n := range s.Layers {
		dst = le.AppendUint32(dst, uint32(n))
		for _, t := range s.Transforms[i] {
			dst = le.AppendUint32(dst, uint32(t.Dim))
			kind := byte(0)
			switch {
			case t.Basis != nil:
				kind = kindBasis
			case t.Order != nil:
				kind = kindSorted
			}
			wide := slices.ContainsFunc(t.Mean, func(v float32) bool { return quant.F16ToF32(quant.F32ToF16(v)) != v })
			dst = append(dst, kind+byte(b2u(wide))*kindWide)
			dst = le.AppendUint32(dst, math.Float32bits(t.Gain))
			for _, v := range t.Mean {
				if wide {
					dst = le.AppendUint32(dst, math.Float32bits(v))
				} else {
					dst = le.AppendUint16(dst, quant.F32ToF16(v))
				}
			}
			std8, scale := t.inRow()
			for _, v := range std8 {
				dst = le.AppendUint16(dst, uint16(v))
			}
			for _, v := range scale {
				dst = le.AppendUint32(dst, math.Float32bits(v))
			}
			for _, v := range t.Basis {
				dst = append(dst, byte(v))
			}
		}
	}
	return dst
}

// setReader reads a set field by field. It keeps the first error.
type setReader struct {
	b   []byte
	off int
	err error
}

func (r *setReader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.b)) {
		r.err = corrupt("parameters", -1, -1, r.off, "%d bytes, want %d", len(r.b), n)
	}
	if r.err != nil {
		return nil
	}
	v := r.b[:n]
	r.b, r.off = r.b[n:], r.off+n
	return v
}

func (r *setReader) uint(n int) uint64 {
	var v [8]byte
	copy(v[:], r.take(n))
	return binary.LittleEndian.Uint64(v[:])
}

func (r *setReader) float() float32 {
	v := math.Float32frombits(uint32(r.uint(4)))
	if r.err == nil && (math.IsNaN(float64(v)) || math.IsInf(float64(v), 0)) {
		r.fail("a number is not finite")
	}
	return v
}

func (r *setReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = corrupt("parameters", -1, -1, r.off, format, args...)
	}
}

// ParseSet reads what AppendTables and Append wrote. It allocates no more than a small multiple of
// their length.
//
// Errors: *CorruptError; quant.ErrVersion for a set of a later kind.
func ParseSet(tables, transforms []byte) (*Set, error) {
	r := &setReader{b: tables}
	if v := r.uint(1); r.err == nil && v != 1 {
		return nil, versionf("tables", v, 1)
	}
	if len(tables) != 1+tablesBytes {
		return nil, corrupt("tables", -1, -1, 0, "%d bytes, want %d", len(tables), 1+tablesBytes)
	}
	t, err := parseTables(r.b)
	if err != nil {
		return nil, corrupt("tables", -1, -1, 0, "%v", err)
	}
	s, err := parseTransforms(transforms)
	if err == nil {
		s.Tables = t
	}
	return s, err
}

func parseTransforms(b []byte) (*Set, error) {
	r := &setReader{b: b}
	if v := r.uint(1); r.err == nil && v != setVersion {
		return nil, versionf("set", v, setVersion)
	}
	s := &Set{Sides: int(r.uint(1)), Heads: int(r.uint(2))}
	layers := int(r.uint(4))
	if r.err == nil && (s.Sides < 1 || s.Sides > 2 || s.Heads < 1 || layers > maxSetLayers) {
		r.fail("%d sides, %d heads, %d layers", s.Sides, s.Heads, layers)
	}
	for range layers {
		if r.err != nil {
			break
		}
		n := int(r.uint(4))
		if len(s.Layers) > 0 && n <= s.Layers[len(s.Layers)-1] {
			r.fail("layer %d behind layer %d", n, s.Layers[len(s.Layers)-1])
		}
		s.Layers = append(s.Layers, n)
		var ts []*Transform
		for range s.Heads * s.Sides {
			t := r.transform()
			if r.err != nil {
				break
			}
			ts = append(ts, t)
		}
		s.Transforms = append(s.Transforms, ts)
	}
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	if r.err != nil {
		return nil, r.err
	}
	return s, nil
}

func (r *setReader) transform() *Transform {
	t := &Transform{Dim: int(r.uint(4))}
	kind := r.uint(1)
	meanBytes := 2
	if kind&kindWide != 0 {
		kind, meanBytes = kind&^kindWide, 4
	}
	t.Gain = r.float()
	if r.err == nil && (t.Dim < 1 || t.Dim > maxSetDim || kind > kindSorted || kind == kindBasis && t.Dim > MaxBasisDim || t.Gain < 0) {
		r.fail("transform of dim %d, kind %d, gain %v", t.Dim, kind, t.Gain)
	}
	mean, std := r.take(meanBytes*t.Dim), r.take(2*t.Dim)
	if r.err != nil {
		return nil
	}
	t.Mean, t.Std8 = make([]float32, t.Dim), make([]int16, t.Dim)
	for i := range t.Dim {
		if meanBytes == 4 {
			t.Mean[i] = math.Float32frombits(binary.LittleEndian.Uint32(mean[4*i:]))
		} else {
			t.Mean[i] = quant.F16ToF32(binary.LittleEndian.Uint16(mean[2*i:]))
		}
		t.Std8[i] = int16(binary.LittleEndian.Uint16(std[2*i:]))
		if m := float64(t.Mean[i]); math.IsNaN(m) || math.IsInf(m, 0) || t.Std8[i] < minStd8 || t.Std8[i] > maxStd8 {
			r.fail("component %d: mean %v, deviation %d", i, m, t.Std8[i])
		}
	}
	need := t.Dim * 4
	if kind == kindBasis {
		need += t.Dim * t.Dim
	}
	if len(r.b) < need {
		r.fail("basis of %d components in %d bytes", t.Dim, len(r.b))
		return nil
	}
	t.Scale = make([]float32, t.Dim)
	for i := range t.Scale {
		t.Scale[i] = r.float()
	}
	switch kind {
	case kindPlain:
		return t
	case kindSorted:
		t.sort()
		return t
	}
	t.Basis = make([]int8, t.Dim*t.Dim)
	for i, v := range r.take(t.Dim * t.Dim) {
		t.Basis[i] = int8(v)
	}
	return t
}

// Find returns the transforms of the layer of a number, nil where the set has none.
func (s *Set) Find(layer int) []*Transform {
	if i, ok := slices.BinarySearch(s.Layers, layer); ok {
		return s.Transforms[i]
	}
	return nil
}

// predictors returns the predictors of the layer of a number, ready for use; nil where it has none.
func (s *Set) predictors(layer int) []*Predictor {
	i, ok := slices.BinarySearch(s.Layers, layer)
	if !ok || i >= len(s.Predictors) || !slices.ContainsFunc(s.Predictors[i], func(p *Predictor) bool { return p != nil }) {
		return nil
	}
	for _, p := range s.Predictors[i] {
		if p != nil {
			p.prepare()
		}
	}
	return s.Predictors[i]
}

// told returns the predictors of lanes that are predicted, and nil for the others.
//
// Errors: *CorruptError where such a lane has none.
func (s *Set) told(layer int, predicted []bool) ([]*Predictor, error) {
	all := s.predictors(layer)
	some := make([]*Predictor, len(predicted))
	for i, told := range predicted {
		if !told {
			continue
		}
		if i >= len(all) || all[i] == nil {
			return nil, corrupt("payload", -1, -1, 2, "lane %d is predicted, and the profile tells nothing of it", i)
		}
		some[i] = all[i]
	}
	return some, nil
}

// limits of a set that is read.
const (
	maxSetLayers = 1 << 16
	maxSetDim    = 1 << 16
)

// The kinds of transforms.
const (
	kindPlain  = 0
	kindBasis  = 1
	kindSorted = 2
	kindWide   = 128 // added: means are f32
)
