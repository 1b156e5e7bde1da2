// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// arrayOf makes an .npy of float32 0, 1, 2, ... in C order, stored in the given way.
func arrayOf(descr string, fortran bool, shape ...int) []byte {
	n := 1
	for _, d := range shape {
		n *= d
	}
	order, dims := "False", ""
	if fortran {
		order = "True"
	}
	for _, d := range shape {
		dims += fmt.Sprintf("%d,", d)
	}
	b := npyBytes(1, fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }", descr, order,
		dims), 0)
	values := make([]float64, n)
	for i := range values {
		at := i
		if fortran {
			at = 0
			rest, stride := i, n
			for k := len(shape) - 1; k >= 0; k-- { // the last index runs fastest in C order
				stride /= shape[k]
				at += rest % shape[k] * stride
				rest /= shape[k]
			}
		}
		values[at] = float64(i)
	}
	for _, v := range values {
		b = appendValue(b, descr, v)
	}
	return b
}

func appendValue(b []byte, descr string, v float64) []byte {
	switch descr {
	case "<f2":
		return binary.LittleEndian.AppendUint16(b, quant.F32ToF16(float32(v)))
	case ">f2":
		return binary.BigEndian.AppendUint16(b, quant.F32ToF16(float32(v)))
	case "<f4":
		return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(v)))
	case ">f4":
		return binary.BigEndian.AppendUint32(b, math.Float32bits(float32(v)))
	case "<f8":
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	case ">f8":
		return binary.BigEndian.AppendUint64(b, math.Float64bits(v))
	case "|i1":
		return append(b, byte(int8(v)))
	}
	panic(descr)
}

func TestNpy_StoredInOtherWays(t *testing.T) {
	for _, shape := range [][]int{{5}, {1, 1}, {7, 3}, {3, 7}, {2, 3, 4}, {4, 1, 5, 2}, {700, 100}} {
		for _, descr := range []string{"<f2", ">f2", "<f4", ">f4", "<f8", ">f8"} {
			for _, fortran := range []bool{false, true} {
				t.Run(fmt.Sprintf("shape=%v/descr=%s/fortran=%v", shape, descr, fortran), func(t *testing.T) {
					if strings.HasSuffix(descr, "f2") && shape[0] == 700 {
						t.Skip("binary16 does not count that far")
					}
					checkCounting(t, mustOpen(t, arrayOf(descr, fortran, shape...)), "")
				})
			}
		}
	}
}

// checkCounting checks that the rows of a tensor are 0, 1, 2, ..., read as a whole, in part and as
// raw data.
func checkCounting(t *testing.T, s *capture.Source, name string) {
	t.Helper()
	a, err := capture.RowsOf(s, name)
	noError(t, err)
	for _, at := range []struct{ first, n int }{{0, a.Rows}, {a.Rows / 2, 1}, {a.Rows - 1, 1},
		{a.Rows / 3, a.Rows / 2}} {
		got := make([]float32, at.n*a.Dim)
		noError(t, a.Tensor.ReadF32(0, at.first, at.n, got))
		raw := make([]byte, at.n*a.Tensor.RowBytes())
		noError(t, a.Tensor.Read(0, at.first, at.n, raw))
		exact := make([]byte, len(raw))
		noError(t, a.Tensor.ReadExactly(0, at.first, at.n, exact))
		equal(t, "exact rows", string(exact), string(raw))
		for i, v := range got {
			want := float32(at.first*a.Dim + i)
			equal(t, "value", v, want)
			switch a.DType {
			case quant.Float16:
				v = quant.F16ToF32(binary.LittleEndian.Uint16(raw[2*i:]))
			case quant.Float32:
				v = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
			}
			equal(t, "raw value", v, want)
		}
	}
	info, _ := s.Lookup(name)
	all := make([]byte, info.Bytes)
	noError(t, s.ReadAt(name, 0, all))
	part := make([]byte, max(0, info.Bytes-4)) // from within an element to within another
	noError(t, s.ReadAt(name, min(3, info.Bytes-int64(len(part))), part))
	if !bytes.Equal(part, all[min(3, len(all)-len(part)):][:len(part)]) {
		t.Fatal("raw access from within an element differs")
	}
}

func TestNpy_SeveralArraysInOneFile(t *testing.T) {
	one := arrayOf("<f4", false, 2, 3)
	_, err := openBytes(append(bytes.Clone(one), one...), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "not supported: a second array", "numpy.savez")
}

func TestNpy_FortranReadsWhatIsAsked(t *testing.T) {
	// 2^20 rows of 64: the values of a row are 4 MiB apart.
	b := npyBytes(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (1048576, 64), }", 0)
	z := &zeros{head: b}
	s, err := capture.New("big", z, int64(len(b))+1<<28, capture.Limits{})
	noError(t, err)
	z.read = 0
	a := s.ActTensors()[0]
	noError(t, a.Tensor.ReadF32(0, 1000, 3, make([]float32, 3*64)))
	equal(t, "bytes read", z.read, 3*64*4)
}

func TestNpy_WhatWouldMakeItWork(t *testing.T) {
	for _, c := range []struct{ header, text string }{
		{"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 64), }", "shape [0 64] holds no values"},
		{"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 70000), }",
			"rows of 70000 values, want at most 65536; reshape the tensor to shorter rows"},
		{"{'descr': '<f4', 'fortran_order': False, 'shape': (140000,), }", "rows of 140000 values"},
		{"{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "two dims or more"},
		{"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }",
			"elements of type I64 have no rows; rows have type F16, BF16, F32, F64, F8_E4M3 or F8_E5M2"},
		{"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,2,3), }",
			"9 dims, want at most 8; reshape the tensor"},
	} {
		n := map[bool]int{true: 560000, false: 0}[strings.Contains(c.header, "0000")]
		switch {
		case strings.Contains(c.header, "()"):
			n = 4
		case strings.Contains(c.header, "i8"):
			n = 48
		case strings.Contains(c.header, "1,1"):
			n = 24
		}
		s := mustOpen(t, npyBytes(1, c.header, n))
		equal(t, "tensors of rows", len(s.ActTensors()), 0)
		wantFormatError(t, s.NoRows(), quant.ErrUnsupported, "not supported: ", c.text)
	}
	noError(t, mustOpen(t, arrayOf("<f4", false, 2, 3)).NoRows())
	wantFormatError(t, mustOpen(t, raw("{}", 0)).NoRows(), quant.ErrUnsupported, "a file without tensors")
}

func TestF64_Range(t *testing.T) {
	open := func(at int, v float64) (*capture.Source, capture.ActTensor) {
		b := arrayOf("<f8", false, 3, 4)
		binary.LittleEndian.PutUint64(b[len(b)-96+8*at:], math.Float64bits(v))
		s := mustOpen(t, b)
		return s, s.ActTensors()[0]
	}
	raw, rows := make([]byte, 48), make([]float32, 12)
	for _, v := range []float64{1e39, -1e300, math.MaxFloat64, 0x1.ffffffp127} {
		s, a := open(6, v)
		for _, err := range []error{a.Tensor.ReadF32(0, 0, 3, rows),
			a.Tensor.Read(0, 0, 3, raw), a.Tensor.Read(0, 1, 1, raw[:16])} {
			fe := wantFormatError(t, err, quant.ErrRange, fmt.Sprintf("row 1 value 2, %v, is beyond float32", v))
			equal(t, "offset", fe.Offset, s.Info().Size-96+48)
		}
	}
	for _, c := range []struct {
		v     float64
		exact bool
	}{{math.MaxFloat32, true}, {-math.MaxFloat32, true}, {0.1, false}, {1 + 1e-12, false},
		{1e-300, false}, {math.SmallestNonzeroFloat32, true}, {0x1p-150, false},
		{math.Inf(1), true}, {math.Inf(-1), true}, {math.NaN(), false}, {math.Copysign(0, -1), true}} {
		_, a := open(6, c.v)
		noError(t, a.Tensor.ReadF32(0, 0, 3, rows))
		noError(t, a.Tensor.Read(0, 0, 3, raw))
		equal(t, "bits", math.Float32bits(rows[6]), math.Float32bits(float32(c.v)))
		equal(t, "raw bits", binary.LittleEndian.Uint32(raw[24:]), math.Float32bits(float32(c.v)))
		err := a.Tensor.ReadExactly(0, 0, 3, raw)
		if c.exact {
			noError(t, err)
		} else if !math.IsNaN(c.v) {
			wantFormatError(t, err, quant.ErrRange, fmt.Sprintf("row 1 value 2, %v, is not a float32", c.v))
		}
	}
}

// floatOf converts an 8-bit float with these numbers of exponent and mantissa bits, by definition.
func floatOf(b byte, exp, mant int, inf bool) float64 {
	sign := math.Copysign(1, -float64(b>>7))
	if b>>7 == 0 {
		sign = 1
	}
	e, m := int(b>>mant)&(1<<exp-1), int(b)&(1<<mant-1)
	bias := 1<<(exp-1) - 1
	switch {
	case inf && e == 1<<exp-1 && m == 0:
		return sign * math.Inf(1)
	case inf && e == 1<<exp-1, !inf && b&0x7f == 0x7f:
		return math.NaN()
	case e == 0:
		return sign * math.Ldexp(float64(m), 1-bias-mant)
	}
	return sign * math.Ldexp(float64(1<<mant+m), e-bias-mant)
}

func TestEightBits_AllValues(t *testing.T) {
	for _, dtype := range []string{"F8_E4M3", "F8_E5M2", "I8"} {
		f := &file{}
		f.add("x", dtype, 16, 16)
		var m memFile
		w, err := capture.NewWriter(&m, f.decls, nil)
		noError(t, err)
		data := make([]byte, 256)
		for i := range data {
			data[i] = byte(i)
		}
		noError(t, w.WriteAt("x", 0, data))
		s := mustOpen(t, m.b)
		a := s.ActTensors()[0]
		equal(t, "element type of rows", a.DType, quant.Float16)
		rows, raw := make([]float32, 256), make([]byte, 512)
		noError(t, a.Tensor.ReadF32(0, 0, 16, rows))
		noError(t, a.Tensor.ReadExactly(0, 0, 16, raw))
		for i, v := range rows {
			want := map[string]float64{"F8_E4M3": floatOf(byte(i), 4, 3, false),
				"F8_E5M2": floatOf(byte(i), 5, 2, true), "I8": float64(int8(i))}[dtype]
			from := quant.F16ToF32(binary.LittleEndian.Uint16(raw[2*i:]))
			if math.IsNaN(want) {
				equal(t, fmt.Sprintf("%s %#x is NaN", dtype, i), v != v && from != from, true)
				continue
			}
			if float64(v) != want || math.Signbit(float64(v)) != math.Signbit(want) || from != v {
				t.Fatalf("%s %#x is %v and raw %v, want %v", dtype, i, v, from, want)
			}
		}
	}
}

func TestKV_OfOtherTypes(t *testing.T) {
	f := smallKV()
	f.set("layers.1.k", "F64", 2, 3, 8)
	f.set("layers.1.v", "F8_E4M3", 2, 3, 4)
	f.set("layers.1.q", "F8_E5M2", 4, 3, 8)
	s := mustOpen(t, f.bytes(t))
	for p, want := range map[capture.Part]quant.DType{capture.K: quant.Float32, capture.V: quant.Float16,
		capture.Q: quant.Float16} {
		equal(t, "element type", dtype(s, 1, p), want)
		x, _ := s.KV(1, p)
		noError(t, x.Read(1, 0, 3, make([]byte, 3*x.RowBytes())))
	}
	// The error for a value beyond float32 names head and row.
	b := f.bytes(t)
	info, _ := s.Lookup("layers.1.k")
	binary.LittleEndian.PutUint64(b[info.Offset+8*(24+8+5):], math.Float64bits(-1e200))
	s = mustOpen(t, b)
	x, _ := s.KV(1, capture.K)
	err := x.ReadF32(1, 0, 3, make([]float32, 24))
	wantFormatError(t, err, quant.ErrRange, `"layers.1.k"`, "head 1 row 1 value 5, -1e+200, is beyond float32")
}

func TestKV_Frequencies(t *testing.T) {
	b := smallKV().bytes(t)
	info, _ := mustOpen(t, b).Lookup("rope_inv_freq")
	for _, v := range []float32{1e20, -1e20, 1025} {
		binary.LittleEndian.PutUint32(b[info.Offset+4:], math.Float32bits(v))
		_, err := openBytes(b, capture.Limits{})
		wantFormatError(t, err, quant.ErrUnsupported, "inv_freq 1 is", "radians a position; up to 1024 is")
	}
	binary.LittleEndian.PutUint32(b[info.Offset+4:], math.Float32bits(1024))
	mustOpen(t, b)
}

func TestActivations_WhereNothingElseIsThere(t *testing.T) {
	f := &file{}
	f.add("codes", "I8", 3, 4)
	f.add("row", "F64", 6)
	f.add("ids", "I64", 3)
	f.add("flags", "I8", 3)
	s := mustOpen(t, f.bytes(t))
	var names []string
	for _, a := range s.ActTensors() {
		names = append(names, fmt.Sprint(a.Name, a.Rows, a.Dim))
	}
	if !slices.Equal(names, []string{"row1 6", "codes3 4"}) {
		t.Fatalf("tensors with rows %q", names)
	}
	equal(t, "side tensors", len(s.SideTensors()), 2)
}
