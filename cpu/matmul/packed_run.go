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

// panel takes inputs [k0, k0+kc) of the panel that starts at output at apart, in s's memory. k0 is
// a multiple of the form's Span.
func (w *Matrix) panel(kern *kernels, s *scratch, at, k0, kc int) panel {
	p := w.packedPanel(kern, s, at, k0, kc)
	w.unpack(kern, s, &p)
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

// multiplyRow multiplies one row of activations with the panel that starts at output at. It reads
// the codes as they are stored if it can: writing and reading them again costs several times the
// product.
func (w *Matrix) multiplyRow(kern *kernels, s *scratch, c []float32, at int, t tile) {
	p := w.packedPanel(kern, s, at, 0, w.k)
	if kern.row != nil && kern.row(c, p, w.form.Bits, &w.consts, t) {
		return
	}
	w.unpack(kern, s, &p)
	kern.multiply(c, panelWidth, p, t)
}

// packedPanel is panel with codes as they are stored.
func (w *Matrix) packedPanel(kern *kernels, s *scratch, at, k0, kc int) panel {
	f := w.form
	p := panel{groups: kc / groupSize, step: f.Step}
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
