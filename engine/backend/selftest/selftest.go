// SPDX-License-Identifier: Apache-2.0

// Package selftest compares a backend with package quant on a tiny example: packed bytes and
// decoded rows bit by bit, attention within a bound.
//
// # Errors
//
// A failed check is a result, not an error.
package selftest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Check is one comparison.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // the difference; empty if the check passed
}

// The example is small. Its lengths are not multiples of a vector register.
const (
	rows  = 37
	group = 3
	seed  = 7
)

// attendBound bounds the error of an attention output. Values lie within [-2, 2] and scores within
// a few units. A float32 inner product of 64 terms is off by less than 64 * 2^-24 of the sum of
// magnitudes, about 2e-4 here; softmax passes this error on once.
const attendBound = 5e-4

// Every coding is tested at one dim; attention to bit planes also at another, since a backend may have a
// kernel for each.
const (
	dimOfAll    = 64
	dimOfPlanes = 128
)

// Codings are the codings that the test covers.
func Codings() []quant.Coding {
	s8 := quant.ScaleLog8
	list := []quant.Coding{{Format: quant.F16}, {Format: quant.U8, Scale: s8}}
	for f := quant.LM1; f <= quant.LM4; f++ {
		list = append(list, quant.Coding{Format: f, Rule: quant.LengthKeeping, Scale: s8},
			quant.Coding{Format: f})
	}
	return list
}

// Run runs all checks.
func Run(ctx context.Context, be backend.Backend) []Check {
	var list []Check
	for _, c := range Codings() {
		for _, op := range []backend.Op{backend.OpEncode, backend.OpDecode, backend.OpAttend} {
			list = append(list, checks(ctx, be, op, c, dimOfAll, "")...)
		}
		if c.Format.Nested() {
			list = append(list, checks(ctx, be, backend.OpAttend, c, dimOfPlanes,
				fmt.Sprint(" at ", dimOfPlanes))...)
		}
	}
	return list
}

// checks runs a check if the backend supports it.
func checks(ctx context.Context, be backend.Backend, op backend.Op, c quant.Coding, dim int,
	suffix string) []Check {
	if !be.Supports(op, c, dim) {
		return nil
	}
	check := Check{Name: op.String() + " " + c.String() + suffix, OK: true}
	if err := one(ctx, be, op, c, dim); err != nil {
		check.OK, check.Detail = false, err.Error()
	}
	return []Check{check}
}

// example returns rows of a fixed sequence in [-2, 2).
func example(n int, start uint64) []float32 {
	x := make([]float32, n)
	for i := range x {
		start = start*6364136223846793005 + 1442695040888963407
		x[i] = float32(int64(start>>40)-1<<23) / (1 << 22)
	}
	return x
}

func one(ctx context.Context, be backend.Backend, op backend.Op, c quant.Coding, dim int) (err error) {
	m := &machine{be: be, dim: dim}
	defer func() { err = errors.Join(err, m.free()) }()
	x := quant.Rows{Dim: dim, Data: example(rows*dim, 1)}
	want := make([]byte, c.PackedBytes(rows, dim))
	if err := quant.Encode(want, c, x, seed); err != nil {
		return err
	}
	switch op {
	case backend.OpEncode:
		return m.encode(ctx, c, x, want)
	case backend.OpDecode:
		return m.decode(ctx, c, want)
	}
	return m.attend(ctx, c, want)
}

// machine allocates on a backend and frees everything at the end.
type machine struct {
	be   backend.Backend
	dim  int
	bufs []backend.Buffer
}

func (m *machine) span(b []byte) (backend.Span, error) {
	buf, err := m.be.Alloc(int64(len(b)))
	if err != nil {
		return backend.Span{}, err
	}
	m.bufs = append(m.bufs, buf)
	return backend.Span{Buf: buf, Len: int64(len(b))}, buf.Upload(0, b)
}

func (m *machine) free() (err error) {
	for _, b := range m.bufs {
		err = errors.Join(err, b.Free())
	}
	return err
}

func floatBytes(x []float32) []byte {
	b := make([]byte, 4*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return b
}

// differs reports the first byte that differs.
func differs(what string, want, got []byte) error {
	if bytes.Equal(want, got) {
		return nil
	}
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("byte %d of %d %s: want %#02x, got %#02x", i, len(want), what,
				want[i], got[i])
		}
	}
	return fmt.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
}

func (m *machine) encode(ctx context.Context, c quant.Coding, x quant.Rows, want []byte) error {
	dim := m.dim
	src, err := m.span(floatBytes(x.Data))
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	dst, err := m.span(got)
	if err != nil {
		return err
	}
	job := backend.EncodeJob{Src: src, DType: quant.Float32, Rows: rows, Dim: dim,
		Dst: backend.Side{Coding: c, Data: dst, Seed: seed}}
	if err := m.be.Encode(ctx, []backend.EncodeJob{job}); err != nil {
		return err
	}
	if err := dst.Buf.Download(0, got); err != nil {
		return err
	}
	return differs("packed", want, got)
}

func (m *machine) decode(ctx context.Context, c quant.Coding, packed []byte) error {
	dim := m.dim
	want := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	if err := quant.Decode(want, c, packed, seed); err != nil {
		return err
	}
	src, err := m.span(packed)
	if err != nil {
		return err
	}
	got := make([]byte, 4*rows*dim)
	dst, err := m.span(got)
	if err != nil {
		return err
	}
	job := backend.DecodeJob{Src: backend.Side{Coding: c, Data: src, Seed: seed}, Rows: rows,
		Dim: dim, Dst: dst}
	if err := m.be.Decode(ctx, []backend.DecodeJob{job}); err != nil {
		return err
	}
	if err := dst.Buf.Download(0, got); err != nil {
		return err
	}
	return differs("decoded", floatBytes(want.Data), got)
}

// attend compares with softmax(q K' scale) V' in float64 over the decoded rows, which serve as both
// K and V.
func (m *machine) attend(ctx context.Context, c quant.Coding, packed []byte) error {
	dim := m.dim
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	if err := quant.Decode(x, c, packed, seed); err != nil {
		return err
	}
	data, err := m.span(packed)
	if err != nil {
		return err
	}
	side := backend.Side{Coding: c, Data: data, Seed: seed}
	q := &backend.Queries{Q: example(group*dim, 2), Group: group, HeadDim: dim, HeadDimV: dim,
		Scale:    0.125,
		BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
	out := make([]float32, group*dim)
	if err := backend.AttendBlocks(ctx, m.be, q, nil, []backend.Block{{Rows: rows, K: side, V: side}},
		backend.Attention{Out: out}); err != nil {
		return err
	}
	for g := range group {
		want := attention(q.Q[g*dim:(g+1)*dim], x, float64(q.Scale))
		for i, w := range want {
			if got := float64(out[g*dim+i]); !(math.Abs(got-w) <= attendBound) {
				return fmt.Errorf("output %d of query head %d: want %g, got %g, bound %g", i, g, w,
					got, attendBound)
			}
		}
	}
	return nil
}

// attention returns softmax(scale * x q) x.
func attention(q []float32, x quant.Rows, scale float64) []float64 {
	scores, top := make([]float64, x.Len()), math.Inf(-1)
	for r := range scores {
		for i, v := range x.Row(r) {
			scores[r] += scale * float64(v) * float64(q[i])
		}
		top = max(top, scores[r])
	}
	out, sum := make([]float64, x.Dim), 0.0
	for r, s := range scores {
		p := math.Exp(s - top)
		sum += p
		for i, v := range x.Row(r) {
			out[i] += p * float64(v)
		}
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}
