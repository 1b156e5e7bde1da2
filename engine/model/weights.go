// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/gguf"
)

// matrix is a weight matrix [n, k] as it is stored in memory.
type matrix interface {
	// mul computes c[m, n] = a[m, k] . w^T. With fast, activations may be quantized to int8.
	mul(e *matmul.Engine, c, a []float32, m int, fast bool) error
	// row decodes row i to dst, [k].
	row(i int, dst []float32)
	rows() int
}

type f32Matrix struct {
	n, k int
	data []float32
}

func (w *f32Matrix) mul(e *matmul.Engine, c, a []float32, m int, _ bool) error {
	return e.F32(c[:m*w.n], a[:m*w.k], w.data, m, w.n, w.k)
}
func (w *f32Matrix) row(i int, dst []float32) { copy(dst, w.data[i*w.k:(i+1)*w.k]) }
func (w *f32Matrix) rows() int                { return w.n }

// stack is several matrices of one k, one below the other, that are multiplied with the same
// activations: q, k and v, or gate and up. Parts of one type become one matrix when loaded.
type stack struct {
	n     int
	parts []matrix
}

// mul computes c[m, n]. If there are several parts, tmp holds the product of each; it needs room for
// [m, rows of the largest].
func (s *stack) mul(e *matmul.Engine, c, a, tmp []float32, m int, fast bool) error {
	if len(s.parts) == 1 {
		return s.parts[0].mul(e, c, a, m, fast)
	}
	off := 0
	for _, p := range s.parts {
		n := p.rows()
		if err := p.mul(e, tmp, a, m, fast); err != nil {
			return err
		}
		for i := range m {
			copy(c[i*s.n+off:i*s.n+off+n], tmp[i*n:(i+1)*n])
		}
		off += n
	}
	return nil
}

// part is a tensor to load. Row r of the file becomes row place(r).
type part struct {
	name  string
	n     int
	place func(r int) int // nil: rows keep their order
}

// unpermute reverses the row order that GGUF gives q and k of llama models: within a head, rows
// 2i and 2i+1 of the file are components i and dim/2+i, which RoPE rotates together. Other
// components keep their place.
func unpermute(headDim, rotaryDim int) func(r int) int {
	return func(r int) int {
		head, c := r/headDim*headDim, r%headDim
		if c >= rotaryDim {
			return r
		}
		return head + c%2*(rotaryDim/2) + c/2
	}
}

// loader reads the weights of a file and records which tensors it used.
type loader struct {
	f    *gguf.File
	used map[string]bool
}

func (l *loader) tensor(name string, dims ...int) (gguf.Tensor, error) {
	t, ok := l.f.Tensor(name)
	if !ok {
		return t, &gguf.FileError{File: l.f.Name, Section: fmt.Sprintf("tensor %q", name), Offset: -1,
			Err: corruptf("missing")}
	}
	ok = len(t.Dims) == len(dims)
	for i := 0; ok && i < len(dims); i++ {
		ok = t.Dims[i] == int64(dims[i])
	}
	if !ok {
		return t, l.f.TensorError(t, corruptf("dimensions %v, want %v", t.Dims, dims))
	}
	l.used[name] = true
	return t, nil
}

func (l *loader) vector(name string, n int) ([]float32, error) {
	t, err := l.tensor(name, n)
	if err != nil {
		return nil, err
	}
	return l.f.Floats(t)
}

// stack loads matrices [n, k] as a stack.
func (l *loader) stack(k int, parts ...part) (*stack, error) {
	s := &stack{}
	same := true
	var first gguf.TensorType
	for i, p := range parts {
		t, err := l.tensor(p.name, k, p.n)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			first = t.Type
		}
		same = same && t.Type == first
		s.n += p.n
	}
	step := 1
	if same {
		step = len(parts)
	}
	for i := 0; i < len(parts); i += step {
		m, err := l.matrix(k, parts[i:i+step])
		if err != nil {
			return nil, err
		}
		s.parts = append(s.parts, m)
	}
	return s, nil
}

// matrix loads parts of one type as one matrix. Quantized types stay quantized; F16 and BF16 become
// float32.
func (l *loader) matrix(k int, parts []part) (matrix, error) {
	n := 0
	for _, p := range parts {
		n += p.n
	}
	var typ gguf.TensorType
	if t, ok := l.f.Tensor(parts[0].name); ok {
		typ = t.Type
	}
	b, err := newSink(typ, n, k)
	if err != nil {
		return nil, fmt.Errorf("kvist/model: load tensor %q: %w", parts[0].name, err)
	}
	row0 := 0
	for _, p := range parts {
		t, err := l.tensor(p.name, k, p.n)
		if err != nil {
			return nil, err
		}
		if err := l.place(b, t, row0, p.place); err != nil {
			return nil, err
		}
		row0 += p.n
	}
	m, err := b.matrix(n, k)
	if err != nil {
		return nil, fmt.Errorf("kvist/model: load tensor %q: %w", parts[0].name, err)
	}
	return m, nil
}

func (l *loader) place(b groupSink, t gguf.Tensor, row0 int, place func(int) int) error {
	vals, bytes := t.Type.Layout()
	perRow := t.Cols() / vals
	return l.f.EachGroups(t, func(first int64, data []byte) {
		for g := first; len(data) > 0; g++ {
			r := int(g / perRow)
			if place != nil {
				r = place(r)
			}
			b.group(t.Type, (row0+r)*int(perRow)+int(g%perRow), data[:bytes])
			data = data[bytes:]
		}
	})
}

// groupSink takes a stored group; g is its number in the resulting matrix.
type groupSink interface {
	group(t gguf.TensorType, g int, b []byte)
	matrix(n, k int) (matrix, error)
}

func newSink(t gguf.TensorType, n, k int) (groupSink, error) {
	if t.Quantized() {
		return newPackedSink(t, n, k)
	}
	return &f32Sink{data: make([]float32, n*k)}, nil
}

type f32Sink struct{ data []float32 }

func (s *f32Sink) group(t gguf.TensorType, g int, b []byte) {
	vals, _ := t.Layout()
	gguf.DecodeGroup(t, b, s.data[g*int(vals):])
}
func (s *f32Sink) matrix(n, k int) (matrix, error) { return &f32Matrix{n, k, s.data}, nil }
