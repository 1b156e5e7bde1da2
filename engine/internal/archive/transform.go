// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
	"github.com/kvist-project/kvist/quant"
)

// Transform is a calibrated basis: row x = Mean + sum over i of y_i * component i. The components
// are not orthogonal in general: y is measured in a metric in which errors of all its components
// weigh the same. Without a basis component i is Scale[i] times value Order[i] of the row.
type Transform struct {
	Dim   int
	Mean  []float32 // [dim]
	Std8  []int16   // [dim], 8*log2 of the deviation of y_i
	Basis []int8    // [dim, dim], row i times Scale[i] is component i; nil: Scale alone
	Scale []float32 // [dim]
	// Order has the values of the row by deviation, the largest first: the components that streams
	// behind the first hold, and Truncate drops, are the weakest. nil: as they stand in the row.
	// With a basis it is nil.
	Order []uint16 // [dim]
	// Gain is what a squared error in y is worth in the metric that the basis was made for: for K
	// the mean of (q . dk)^2 over queries is Gain * |dy|^2; 0 where it is not known.
	Gain float32

	forward []float32 // [dim, dim], made when asked for
	inverse []float32 // [dim, dim], the components
}

// Bounds of deviations, 8*log2. A component of minStd8 never varied: no step is so fine that it is
// coded.
const (
	minStd8 = -1024
	maxStd8 = 1024
)

// prepare makes the matrices. A basis that cannot be inverted is an error: it comes from a
// damaged profile.
func (t *Transform) prepare(encode bool) error {
	if t.Basis == nil {
		if encode && t.forward == nil {
			t.forward = make([]float32, t.Dim)
			for i, s := range t.Scale {
				if s == 0 {
					return shapef("transform: the scale of component %d is 0", i)
				}
				t.forward[i] = 1 / s
			}
		}
		return nil
	}
	if t.inverse == nil {
		t.inverse = make([]float32, len(t.Basis))
		for i := range t.Dim {
			for j := range t.Dim {
				t.inverse[i*t.Dim+j] = t.Scale[i] * float32(t.Basis[i*t.Dim+j])
			}
		}
	}
	if encode && t.forward == nil {
		m := make([]float64, len(t.inverse))
		for i, v := range t.inverse {
			m[i] = float64(v)
		}
		inv, ok := invert(m, t.Dim)
		if !ok {
			return shapef("transform: the basis of %d components is singular", t.Dim)
		}
		t.forward = make([]float32, len(inv))
		for i, v := range inv {
			t.forward[i] = float32(v)
		}
	}
	return nil
}

// value returns the value of the row that component i is of.
func (t *Transform) value(i int) int {
	if t.Order != nil {
		return int(t.Order[i])
	}
	return i
}

// sort puts components that stand as the values of the row do in the order of their deviations.
func (t *Transform) sort() {
	t.Order = make([]uint16, t.Dim)
	for i := range t.Order {
		t.Order[i] = uint16(i)
	}
	std8, scale := t.Std8, t.Scale
	slices.SortStableFunc(t.Order, func(i, j uint16) int { return int(std8[j]) - int(std8[i]) })
	t.Std8, t.Scale = make([]int16, t.Dim), make([]float32, t.Dim)
	for i, j := range t.Order {
		t.Std8[i], t.Scale[i] = std8[j], scale[j]
	}
}

// Deviation8 returns 8*log2 of the root mean square deviation of a value from its mean, for components that
// are orthonormal; 0 for rows that never varied.
func (t *Transform) Deviation8() int {
	var energy float64
	for _, s := range t.Std8 {
		if s > minStd8 {
			energy += math.Exp2(float64(s) / 4)
		}
	}
	if energy == 0 {
		return 0
	}
	return int(math.Round(4 * math.Log2(energy/float64(t.Dim))))
}

// inRow returns deviations and scales as the values stand in the row.
func (t *Transform) inRow() (std8 []int16, scale []float32) {
	if t.Order == nil {
		return t.Std8, t.Scale
	}
	std8, scale = make([]int16, t.Dim), make([]float32, t.Dim)
	for i, j := range t.Order {
		std8[j], scale[j] = t.Std8[i], t.Scale[i]
	}
	return std8, scale
}

// foreign reports whether the mean is none of rows of these sizes: all of their values are far smaller.
// Taken off such rows it would be all that is left of them.
func (t *Transform) foreign(size []float32) bool {
	var most, mean float32
	for _, s := range size {
		most = max(most, s)
	}
	for _, m := range t.Mean {
		mean = max(mean, m, -m)
	}
	return most > 0 && most < mean/8
}

// mean returns what is taken off rows, zeros for bare ones.
func (t *Transform) mean(bare bool) []float32 {
	if bare {
		return make([]float32, t.Dim)
	}
	return t.Mean[:t.Dim]
}

// project puts the components of x, [rows, dim], in its place.
func (t *Transform) project(x, mean []float32) {
	d := t.Dim
	centred := make([]float32, d)
	for r := range len(x) / d {
		row := x[r*d : (r+1)*d]
		for j, m := range mean {
			centred[j] = row[j] - m
		}
		if t.Basis == nil {
			for i, f := range t.forward {
				row[i] = centred[t.value(i)] * f
			}
			continue
		}
		clear(row)
		axpy.Accumulate(row, t.forward, centred)
	}
}

// restore sets x to the rows that the components y stand for. The sum runs over the components
// in order, each product rounded, so that every machine gives the same bits; components that are
// zero change nothing. The mean comes last: a large one would take digits off every partial sum.
func (t *Transform) restore(x, y, mean []float32) {
	d := t.Dim
	for r := range len(x) / d {
		row, in := x[r*d:(r+1)*d], y[r*d:(r+1)*d]
		if t.Basis == nil {
			for i, v := range in {
				j := t.value(i)
				row[j] = mean[j] + float32(v*t.Scale[i])
			}
			continue
		}
		clear(row)
		axpy.Accumulate(row, t.inverse, in)
		for j, m := range mean {
			row[j] += m
		}
	}
}

// invert returns the inverse of an n by n matrix by elimination in place, with row pivots.
func invert(m []float64, n int) ([]float64, bool) {
	a := slices.Clone(m)
	swapped := make([]int, n)
	for c := range n {
		p := c
		for r := c; r < n; r++ {
			if math.Abs(a[r*n+c]) > math.Abs(a[p*n+c]) {
				p = r
			}
		}
		if !(math.Abs(a[p*n+c]) > 1e-12) {
			return nil, false
		}
		swapped[c] = p
		top := a[c*n : (c+1)*n]
		if p != c {
			for j, v := range a[p*n : (p+1)*n] {
				top[j], a[p*n+j] = v, top[j]
			}
		}
		// Column c becomes that of the inverse as the others are eliminated.
		f := 1 / top[c]
		top[c] = 1
		for j := range top {
			top[j] *= f
		}
		for r := range n {
			row := a[r*n : (r+1)*n]
			g := row[c]
			if r == c || g == 0 {
				continue
			}
			row[c] = 0
			axpy.Subtract(row, top, g)
		}
	}
	// Rows that were swapped are columns of the inverse.
	for c := n - 1; c >= 0; c-- {
		if p := swapped[c]; p != c {
			for r := range n {
				a[r*n+c], a[r*n+p] = a[r*n+p], a[r*n+c]
			}
		}
	}
	return a, true
}

// Set is a family of transforms and the tables that belong to them: what a profile holds, or a
// file that has none.
type Set struct {
	Tables *Tables
	Heads  int // KV heads
	Sides  int // 2: K and V; 1: rows
	// Layers are the model's numbers, ascending; Transforms is [layers][heads*sides].
	Layers     []int
	Transforms [][]*Transform

	mu sync.Mutex // a set may be used by many codecs
}

// prepare prepares the transforms, on all cores, unless that was done.
func (s *Set) prepare(encode bool) error {
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

// limits of a set that is read.
const (
	maxSetLayers = 1 << 16
	maxSetDim    = 1 << 16
)

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

// The kinds of transforms.
const (
	kindPlain  = 0
	kindBasis  = 1
	kindSorted = 2
	kindWide   = 128 // added: means are f32
)

// setReader takes a set apart. The first fault sticks.
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
