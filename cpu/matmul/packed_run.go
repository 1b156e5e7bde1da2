// SPDX-License-Identifier: Apache-2.0

package matmul

// panel is a panel of a Matrix, or a part of its groups, taken apart for the kernels: the codes of
// 8 bits of the package comment, and scales in float32.
type panel struct {
	groups       int
	step         int       // 16 or 32
	codes        []uint8   // [groups][512]: int8
	scales, mins []float32 // [32/step*groups][16]; mins nil: none
}

// steps returns the number of scales of an output.
func (p panel) steps() int { return groupSize / p.step * p.groups }

// plain reports whether codes and sums are those of a Q4Matrix or a Q8Matrix, whose kernels read the
// codes as they are stored.
func (w *Matrix) plain() bool {
	f := w.form
	return f.Step == groupSize && f.Table == nil && (f.Bits == 8 && !f.Mins || f.Bits == 4 && f.Offset == 0 && f.Mins)
}

// panel takes inputs [k0, k0+kc) of the panel that starts at output at apart, in s's memory. k0 is
// a multiple of the form's Span.
func (w *Matrix) panel(kern *kernels, s *scratch, at, k0, kc int) panel {
	p := w.packedPanels(kern, s, at, k0, kc, 1)
	if !w.plain() {
		w.unpack(kern, s, &p)
	}
	return p
}

// unpack replaces packed codes by those of 8 bits.
func (w *Matrix) unpack(kern *kernels, s *scratch, p *panel) {
	if w.form.Bits == 8 {
		return
	}
	s.codes = grown(s.codes, p.groups*panelBytes8)
	kern.unpack(s.codes, p.codes, w.form.Bits, &w.consts, p.groups)
	p.codes = s.codes
}

// expand writes what panel returned as float32 [kc][16].
func (w *Matrix) expand(kern *kernels, dst []float32, p panel) {
	if w.form.Bits == 4 && w.plain() {
		kern.expand4(dst, p.codes, p.scales, p.mins, p.groups)
		return
	}
	kern.expand(dst, p)
}

// multiply computes c[t.rows][16] from what panel returned.
func (w *Matrix) multiply(kern *kernels, c []float32, ldc int, p panel, t tile) {
	if w.form.Bits == 4 && w.plain() {
		kern.q4(c, ldc, p.codes, p.scales, p.mins, t)
		return
	}
	kern.multiply(c, ldc, p, t)
}

// multiplyRow multiplies one row of activations with the panel that starts at output at. It reads
// codes and scales as they are stored if it can: writing and reading them again costs several times
// the product.
func (w *Matrix) multiplyRow(kern *kernels, s *scratch, c []float32, at int, t tile) {
	if kern.row != nil && kern.row(c, w.stored(at), t) {
		return
	}
	w.multiply(kern, c, panelWidth, w.panel(kern, s, at, 0, w.k), t)
}

// storedPanel is a panel of a Matrix as it is stored.
type storedPanel struct {
	form          Form
	groups        int
	consts        *[16]uint8
	codes         []uint8
	wide          []float32
	scales, mins  []uint16
	steps, minSub []int8
}

// stored returns the panel that starts at output at.
func (w *Matrix) stored(at int) storedPanel {
	f, p := w.form, at/panelWidth
	groups := w.k / groupSize
	return storedPanel{form: f, groups: groups, consts: &w.consts, codes: of(w.codes, p, groups*64*f.Bits),
		wide: of(w.wide, p, w.k/f.Span*panelWidth), scales: of(w.scales, p, w.k/f.Span*panelWidth),
		mins: of(w.mins, p, w.k/f.Span*panelWidth), steps: of(w.steps, p, w.k/f.Step*panelWidth),
		minSub: of(w.minSub, p, w.k/f.Step*panelWidth)}
}

// of returns part i of v, of n elements; nil for nil.
func of[T any](v []T, i, n int) []T {
	if v == nil {
		return nil
	}
	return v[i*n : (i+1)*n]
}

// rowPanels multiplies rowPanels panels of a plain matrix, from output first on, with m rows of
// activations in float32.
func (w *Matrix) rowPanels(kern *kernels, s *scratch, c, a []float32, first, m int) {
	p := w.packedPanels(kern, s, first, 0, w.k, rowPanels)
	for r := range m {
		row, out := a[r*w.k:(r+1)*w.k], c[r*w.n+first:]
		if w.form.Bits == 8 {
			kern.row8(out, p.codes, p.scales, row, w.k/groupSize)
		} else {
			kern.row4(out, p.codes, p.scales, p.mins, row, w.k/groupSize)
		}
	}
}

// packedPanels is panel for count consecutive panels, with codes as they are stored. More than one
// take all inputs.
func (w *Matrix) packedPanels(kern *kernels, s *scratch, at, k0, kc, count int) panel {
	f := w.form
	p := panel{groups: count * kc / groupSize, step: f.Step}
	first := at/panelWidth*(w.k/groupSize) + k0/groupSize
	p.codes = w.codes[first*64*f.Bits : (first+p.groups)*64*f.Bits]
	base := (at/panelWidth*(w.k/f.Span) + k0/f.Span) * panelWidth
	step := (at/panelWidth*(w.k/f.Step) + k0/f.Step) * panelWidth
	n := p.steps()
	if f.Wide {
		p.scales = w.wide[base : base+n*panelWidth]
		return p
	}
	up := func(dst []float32, bases []uint16, steps []int8) []float32 {
		if steps != nil {
			steps = steps[step : step+n*panelWidth]
		}
		dst = grown(dst, n*panelWidth)
		kern.scales(dst, bases[base:base+n*f.Step/f.Span*panelWidth], steps, n, f.Span/f.Step)
		return dst
	}
	s.scales = up(s.scales, w.scales, w.steps)
	p.scales = s.scales
	if f.Mins {
		s.mins = up(s.mins, w.mins, w.minSub)
		p.mins = s.mins
	}
	return p
}

// grown returns n arbitrary values in b's memory, or in more.
func grown[T any](b []T, n int) []T {
	if cap(b) < n {
		return make([]T, n)
	}
	return b[:n]
}
