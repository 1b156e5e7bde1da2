// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Form says how the weights of a Matrix are stored. Weight i of a row is
//
//	float32(scale*float32(v)), plus min with Mins
//
// where v is a small integer, and scale and min are shared by Step inputs: each is a base, shared
// by Span inputs, times an integer of 8 bits, or the base itself where Span equals Step.
type Form struct {
	Bits   int       // of a stored code: 2 to 6 or 8
	Offset int       // v = code - Offset; 128 with 8 bits
	Table  *[16]int8 // v = Table[code], for 4 bits; nil: Offset
	Step   int       // 16 or 32
	Span   int       // Step, or a larger power of two up to 256
	Mins   bool
	Wide   bool // bases are any float32, without Mins and with Span = Step; false: numbers of binary16
}

// WeightRow is a row of a Matrix.
type WeightRow struct {
	Codes          []int8    // [k]: v
	Scales, Mins   []float32 // [k/Span]
	Steps, MinStep []int8    // [k/Step], unused where Span equals Step
}

// Matrix is a weight matrix [n, k] in a Form, at about its bits in memory. It is written row by row
// with SetRow and must not be in use then.
type Matrix struct {
	form          Form
	n, k          int
	consts        [16]uint8 // of the unpacking kernel: the table, or the offset in every byte
	codes         []uint8   // [panels][groups][64*Bits], see the package comment
	wide          []float32 // [panels][k/Span][16]; nil without Wide
	scales, mins  []uint16  // [panels][k/Span][16], binary16
	steps, minSub []int8    // [panels][k/Step][16]; nil where Span equals Step
}

// NewMatrix makes a matrix of zero codes and scales.
//
// Errors: quant.ErrShape for sizes that are negative or overflow, or k that is not a multiple of 32
// and of Span; quant.ErrUnsupported for a Form that no kernel knows.
func NewMatrix(f Form, n, k int) (*Matrix, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	size, ok := mul(n, max(k, 1))
	if n < 0 || k < 0 || k%groupSize != 0 || k%f.Span != 0 || !ok || size > maxInt/16 {
		return nil, fmt.Errorf("kvist/matmul: NewMatrix: n %d, k %d, want both >= 0 and k a multiple "+
			"of %d and %d: %w", n, k, groupSize, f.Span, quant.ErrShape)
	}
	w := &Matrix{form: f, n: n, k: k}
	for i := range w.consts {
		w.consts[i] = uint8(f.Offset)
		switch {
		case f.Table != nil:
			w.consts[i] = uint8(f.Table[i])
		case f.Bits <= 4:
			w.consts[i] = uint8(i - f.Offset)
		}
	}
	if n == 0 || k == 0 {
		return w, nil
	}
	lanes := panels(n) * panelWidth
	w.codes = make([]uint8, lanes*k/8*f.Bits)
	if f.Wide {
		w.wide = make([]float32, lanes*(k/f.Span))
	} else {
		w.scales = make([]uint16, lanes*(k/f.Span))
	}
	if f.Mins {
		w.mins = make([]uint16, lanes*(k/f.Span))
	}
	if f.Span > f.Step {
		w.steps = make([]int8, lanes*(k/f.Step))
		if f.Mins {
			w.minSub = make([]int8, lanes*(k/f.Step))
		}
	}
	return w, nil
}

func (f Form) check() error {
	ok := f.Step == 16 || f.Step == 32
	ok = ok && f.Span >= f.Step && f.Span <= matrixBlock && f.Span&(f.Span-1) == 0
	switch {
	case f.Table != nil:
		ok = ok && f.Bits == 4 && f.Offset == 0
	case f.Bits == 8:
		ok = ok && f.Offset == 128
	default:
		ok = ok && f.Bits >= 2 && f.Bits <= 6 && f.Offset >= 0 && f.Offset < 1<<f.Bits
	}
	if f.Wide {
		ok = ok && !f.Mins && f.Span == f.Step
	}
	if !ok {
		return fmt.Errorf("kvist/matmul: NewMatrix: form %+v: %w", f, quant.ErrUnsupported)
	}
	return nil
}

// N returns the number of outputs, the rows of the matrix.
func (w *Matrix) N() int { return w.n }

// K returns the number of inputs, the columns of the matrix.
func (w *Matrix) K() int { return w.k }

// SizeBytes returns the number of bytes that the matrix takes, including padding.
func (w *Matrix) SizeBytes() int {
	return len(w.codes) + 4*len(w.wide) + 2*len(w.scales) + 2*len(w.mins) + len(w.steps) + len(w.minSub)
}

// A plane holds width bits of every code, from bit base on. Its vectors follow those of the planes
// before it.
type plane struct{ width, base, first int }

// planes says how codes of a number of bits are cut.
var planes = [9][]plane{
	2: {{2, 0, 0}},
	3: {{2, 0, 0}, {1, 2, 2}},
	4: {{4, 0, 0}},
	5: {{4, 0, 0}, {1, 4, 4}},
	6: {{4, 0, 0}, {2, 4, 4}},
	8: {{8, 0, 0}},
}

// at returns where input in of an output keeps its bits: a byte within a group of a panel, and a shift.
func (p plane) at(in, output int) (index, shift int) {
	q := in / 4
	return 64*(p.first+q%p.width) + 4*output + in%4, q / p.width * p.width
}

// SetRow writes row i.
//
// Errors: quant.ErrShape for a row out of [0, n) or slices of other lengths; quant.ErrRange for a
// code that the form does not have, or a base that is no binary16 number, before anything is
// written.
func (w *Matrix) SetRow(i int, r WeightRow) error {
	if err := w.checkRow(i, r); err != nil {
		return err
	}
	lane, groups := i%panelWidth, w.k/groupSize
	panel := w.codes[i/panelWidth*groups*64*w.form.Bits:]
	for _, p := range planes[w.form.Bits] {
		mask := uint8(1<<p.width - 1)
		for j, v := range r.Codes {
			at, shift := p.at(j%groupSize, lane)
			b := &panel[j/groupSize*64*w.form.Bits+at]
			*b = *b&^(mask<<shift) | w.code(v)>>p.base&mask<<shift
		}
	}
	w.setBases(i, w.wide, w.scales, r.Scales)
	w.setBases(i, nil, w.mins, r.Mins)
	w.setSteps(i, w.steps, r.Steps)
	w.setSteps(i, w.minSub, r.MinStep)
	return nil
}

func (w *Matrix) setBases(i int, wide []float32, half []uint16, v []float32) {
	for s := range v {
		at := w.lane(i, s, w.k/w.form.Span)
		if wide != nil {
			wide[at] = v[s]
		} else if half != nil {
			half[at] = quant.F32ToF16(v[s])
		}
	}
}

func (w *Matrix) setSteps(i int, dst, v []int8) {
	for s := 0; dst != nil && s < len(v); s++ {
		dst[w.lane(i, s, w.k/w.form.Step)] = v[s]
	}
}

// lane returns the index of element s of row i in an array [panels][per][16].
func (w *Matrix) lane(i, s, per int) int { return (i/panelWidth*per+s)*panelWidth + i%panelWidth }

// code returns the stored code of v, which checkRow has found to have one. Kernels for 8 bits read
// signed bytes.
func (w *Matrix) code(v int8) uint8 {
	if w.form.Table == nil {
		if w.form.Bits == 8 {
			return uint8(v)
		}
		return uint8(int(v) + w.form.Offset)
	}
	for c, t := range w.form.Table {
		if t == v {
			return uint8(c)
		}
	}
	return 0
}

func (w *Matrix) checkRow(i int, r WeightRow) error {
	const op = "SetRow"
	f := w.form
	if i < 0 || i >= w.n {
		return fmt.Errorf("kvist/matmul: %s: row %d, want 0 to %d: %w", op, i, w.n-1, quant.ErrShape)
	}
	length := func(what string, got, per int, used bool) error {
		if used && got != w.k/per {
			return shapeError(op, what, got, 1, w.k/per)
		}
		return nil
	}
	for _, err := range []error{
		length("codes", len(r.Codes), 1, true), length("scales", len(r.Scales), f.Span, true),
		length("mins", len(r.Mins), f.Span, f.Mins),
		length("steps", len(r.Steps), f.Step, f.Span > f.Step),
		length("minima's steps", len(r.MinStep), f.Step, f.Mins && f.Span > f.Step),
	} {
		if err != nil {
			return err
		}
	}
	for j, v := range r.Codes {
		c := int(v) + f.Offset
		if f.Table != nil && f.Table[w.code(v)] != v || f.Table == nil && (c < 0 || c >= 1<<f.Bits) {
			return fmt.Errorf("kvist/matmul: %s: row %d, column %d: %d is no code of %d bits: %w", op, i, j,
				v, f.Bits, quant.ErrRange)
		}
	}
	for _, bases := range [][]float32{r.Scales, r.Mins} {
		for j, b := range bases {
			if !f.Wide && math.Float32bits(quant.F16ToF32(quant.F32ToF16(b))) != math.Float32bits(b) && b == b {
				return fmt.Errorf("kvist/matmul: %s: row %d: scale or minimum %d is %v, no binary16 number: %w",
					op, i, j, b, quant.ErrRange)
			}
		}
	}
	return nil
}

// Row writes row i as float32 to dst, at most k values. A row out of [0, n) writes nothing.
func (w *Matrix) Row(i int, dst []float32) {
	if i < 0 || i >= w.n {
		return
	}
	f, groups := w.form, w.k/groupSize
	panel := w.codes[i/panelWidth*groups*64*f.Bits:]
	list := planes[f.Bits]
	for j := range dst[:min(len(dst), w.k)] {
		var code uint8
		for _, p := range list {
			at, shift := p.at(j%groupSize, i%panelWidth)
			code |= panel[j/groupSize*64*f.Bits+at] >> shift & (1<<p.width - 1) << p.base
		}
		v := float32(w.scale(w.wide, w.scales, w.steps, i, j) * float32(w.value(code)))
		if f.Mins {
			v += w.scale(nil, w.mins, w.minSub, i, j)
		}
		dst[j] = v
	}
}

// value returns what a code stands for.
func (w *Matrix) value(code uint8) int8 {
	switch {
	case w.form.Bits == 8:
		return int8(code)
	case w.form.Bits <= 4:
		return int8(w.consts[code])
	}
	return int8(code) - int8(w.form.Offset)
}

// scale returns the scale, or the minimum, of input j of row i.
func (w *Matrix) scale(wide []float32, half []uint16, steps []int8, i, j int) float32 {
	at := w.lane(i, j/w.form.Span, w.k/w.form.Span)
	if wide != nil {
		return wide[at]
	}
	s := quant.F16ToF32(half[at])
	if steps != nil {
		s *= float32(steps[w.lane(i, j/w.form.Step, w.k/w.form.Step)])
	}
	return s
}

// Exact computes c[m,n] = a[m,k] . w^T with float32 activations: F32 on the rows of w.
//
// Errors: quant.ErrShape.
func (e *Engine) Exact(c, a []float32, w *Matrix, m int) error {
	if w == nil {
		return nilError("Exact")
	}
	if err := checkProduct("Exact", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w: w, m: m, n: w.n, k: w.k, fill: fillMatrix})
	return nil
}

// Fast computes c[m,n] = a[m,k] . w^T with activations quantized to int8 per row and group of 32; the
// package comment bounds the error.
//
// Errors: quant.ErrShape.
func (e *Engine) Fast(c, a []float32, w *Matrix, m int) error {
	if w == nil {
		return nilError("Fast")
	}
	if err := checkProduct("Fast", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w: w, m: m, n: w.n, k: w.k, integer: true})
	return nil
}
