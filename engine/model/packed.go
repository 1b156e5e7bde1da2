// SPDX-License-Identifier: Apache-2.0

package model

import (
	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/gguf"
)

// forms says how the products keep the quantized types of GGUF: the same integers and scales, so
// that a weight is what gguf.DecodeGroup says, at about the bytes of the file.
var forms = map[gguf.TensorType]matmul.Form{
	gguf.TensorQ4_0:   {Bits: 4, Offset: 8, Step: 32, Span: 32},
	gguf.TensorQ4_1:   {Bits: 4, Step: 32, Span: 32, Mins: true},
	gguf.TensorQ5_0:   {Bits: 5, Offset: 16, Step: 32, Span: 32},
	gguf.TensorQ5_1:   {Bits: 5, Step: 32, Span: 32, Mins: true},
	gguf.TensorQ8_0:   {Bits: 8, Offset: 128, Step: 32, Span: 32},
	gguf.TensorQ2_K:   {Bits: 2, Step: 16, Span: 256, Mins: true},
	gguf.TensorQ3_K:   {Bits: 3, Offset: 4, Step: 16, Span: 256},
	gguf.TensorQ4_K:   {Bits: 4, Step: 32, Span: 256, Mins: true},
	gguf.TensorQ5_K:   {Bits: 5, Step: 32, Span: 256, Mins: true},
	gguf.TensorQ6_K:   {Bits: 6, Offset: 32, Step: 16, Span: 256},
	gguf.TensorIQ4_NL: {Bits: 4, Step: 32, Span: 32, Table: &gguf.CodesIQ4},
	gguf.TensorIQ4_XS: {Bits: 4, Step: 32, Span: 256, Table: &gguf.CodesIQ4},
	gguf.TensorMXFP4:  {Bits: 4, Step: 32, Span: 32, Table: &gguf.CodesMXFP4, Wide: true},
}

type packedMatrix struct{ w *matmul.Matrix }

func (p packedMatrix) mul(e *matmul.Engine, c, a []float32, m int, fast bool) error {
	c, a = c[:m*p.w.N()], a[:m*p.w.K()]
	if fast {
		return e.Fast(c, a, p.w, m)
	}
	return e.Exact(c, a, p.w, m)
}
func (p packedMatrix) row(i int, dst []float32) { p.w.Row(i, dst[:p.w.K()]) }
func (p packedMatrix) rows() int                { return p.w.N() }

// packedSink collects the groups of one row at a time: place hands a row's groups out in order.
type packedSink struct {
	w      *matmul.Matrix
	form   matmul.Form
	perRow int // groups
	row    matmul.WeightRow
	group1 gguf.Group
	err    error
}

func newPackedSink(t gguf.TensorType, n, k int) (*packedSink, error) {
	form := forms[t]
	w, err := matmul.NewMatrix(form, n, k)
	if err != nil {
		return nil, err
	}
	vals, _ := t.Layout()
	return &packedSink{w: w, form: form, perRow: k / int(vals)}, nil
}

func (s *packedSink) group(t gguf.TensorType, g int, b []byte) {
	if g%s.perRow == 0 {
		s.row = matmul.WeightRow{Codes: s.row.Codes[:0], Scales: s.row.Scales[:0], Mins: s.row.Mins[:0],
			Steps: s.row.Steps[:0], MinStep: s.row.MinStep[:0]}
	}
	x, r := &s.group1, &s.row
	gguf.SplitGroup(t, b, x)
	r.Codes = append(r.Codes, x.Codes[:x.Len]...)
	r.Scales = append(r.Scales, x.Scale)
	steps := x.Len / x.Step
	if s.form.Span > s.form.Step {
		r.Steps = append(r.Steps, x.Scales[:steps]...)
	}
	if s.form.Mins {
		r.Mins = append(r.Mins, x.Min)
		if s.form.Span > s.form.Step {
			r.MinStep = append(r.MinStep, x.Mins[:steps]...)
		}
	}
	if g%s.perRow == s.perRow-1 && s.err == nil {
		s.err = s.w.SetRow(g/s.perRow, s.row)
	}
}

func (s *packedSink) matrix(int, int) (matrix, error) { return packedMatrix{s.w}, s.err }
