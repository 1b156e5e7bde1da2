// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// fuzzLimits keep the time for an input in proportion to its size.
var fuzzLimits = capture.Limits{HeaderBytes: 1 << 16, Tensors: 256, Dims: 16, NameBytes: 256,
	TotalBytes: 1 << 20}

// checkSource checks what holds for every file that opens: its tensors cover its data, all declared
// rows and side data can be read, and a copy has the same content.
func checkSource(t testing.TB, s *capture.Source, size int64) {
	t.Helper()
	tensors := s.Tensors()
	at := size
	for _, info := range slices.Backward(tensors) {
		if at -= info.Bytes; info.Offset != at {
			t.Fatalf("tensor %q is at byte %d, want %d", info.Name, info.Offset, at)
		}
	}
	checkRows(t, s)
	if s.Info().Format == "safetensors" {
		checkCopy(t, s)
	}
}

func checkRows(t testing.TB, s *capture.Source) {
	t.Helper()
	var list []capture.Tensor
	for _, a := range s.ActTensors() {
		list = append(list, a.Tensor)
	}
	for _, n := range s.Info().Layers {
		for p := capture.K; p <= capture.QNext; p++ {
			if x, ok := s.KV(n, p); ok {
				list = append(list, x)
			}
		}
		if x, ok := s.OWeight(n); ok {
			list = append(list, x)
		}
		noError(t, s.ReadBias(n, 0, 0, make([]float32, s.Info().Tokens)))
		noError(t, s.ReadKept(n, 0, 0, make([]uint8, s.Info().Tokens)))
	}
	if s.Info().KV {
		noError(t, s.Info().Geometry.Validate())
		err := s.ReadPositions(false, 0, make([]int64, s.Info().Tokens))
		if err != nil && !errors.Is(err, quant.ErrUnsupported) { // a negative position
			t.Fatal(err)
		}
	}
	for _, x := range list {
		rows := min(x.Rows(), 3)
		if rows == 0 {
			continue
		}
		raw := make([]byte, rows*x.RowBytes())
		values := make([]float32, rows*x.Dim())
		first := x.Rows() - rows
		for _, err := range []error{x.Read(x.Heads()-1, first, rows, raw),
			x.ReadF32(x.Heads()-1, first, rows, values)} {
			if err != nil && !errors.Is(err, quant.ErrRange) { // an F64 beyond float32
				t.Fatal(err)
			}
		}
	}
}

func checkCopy(t testing.TB, s *capture.Source) {
	t.Helper()
	var decls []capture.Decl
	for _, info := range s.Tensors() {
		decls = append(decls, info.Decl)
	}
	var m memFile
	w, err := capture.NewWriter(&m, decls, s.Info().Metadata)
	noError(t, err)
	for _, d := range decls {
		noError(t, copyTensor(w, s, d.Name))
	}
	noError(t, w.Close())
	again := mustOpen(t, m.b)
	equal(t, "kind of the copy", again.Info().KV, s.Info().KV)
	for _, info := range s.Tensors() {
		other, ok := again.Lookup(info.Name)
		if !ok || other.DTypeName != info.DTypeName || !slices.Equal(other.Shape, info.Shape) {
			t.Fatalf("the copy has %+v, want %+v", other, info)
		}
		a, b := make([]byte, info.Bytes), make([]byte, info.Bytes)
		noError(t, s.ReadAt(info.Name, 0, a))
		noError(t, again.ReadAt(info.Name, 0, b))
		if !bytes.Equal(a, b) {
			t.Fatalf("the copy of tensor %q differs", info.Name)
		}
	}
}

// readOdd opens a file that may be damaged and reads all of it. Every error must be a *FormatError.
func readOdd(t testing.TB, b []byte, lim capture.Limits) {
	t.Helper()
	ok := func(err error) bool {
		var fe *capture.FormatError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("%v is a %T, want a *FormatError", err, err)
		}
		return err == nil
	}
	s, err := openBytes(b, lim)
	if !ok(err) {
		return
	}
	for _, info := range s.Tensors() {
		if info.Bytes > 1<<20 {
			continue
		}
		ok(s.ReadAt(info.Name, 0, make([]byte, info.Bytes)))
	}
	for _, a := range s.ActTensors() {
		n := min(a.Rows, 3)
		ok(a.Tensor.Read(0, a.Rows-n, n, make([]byte, n*a.Tensor.RowBytes())))
		ok(a.Tensor.ReadF32(0, a.Rows-n, n, make([]float32, n*a.Dim)))
	}
	noError(t, s.Close())
}

func fuzzOne(t *testing.T, b []byte) {
	s, err := openBytes(b, fuzzLimits)
	if err == nil {
		checkSource(t, s, int64(len(b)))
		return
	}
	var fe *capture.FormatError
	if !errors.As(err, &fe) {
		t.Fatalf("%v is a %T, want a *FormatError", err, err)
	}
	n := 0
	for _, c := range categories {
		if errors.Is(err, c) {
			n++
		}
	}
	equal(t, "categories of "+err.Error(), n, 1)
}

// FuzzSafetensors generates headers. TestEveryTruncation_GivesTypedError and
// TestEveryHeaderBit_FlippedIsRefusedOrConsistent test wrong lengths.
func FuzzSafetensors(f *testing.F) {
	b := smallKV().bytes(f)
	n := 8 + int(binary.LittleEndian.Uint64(b))
	f.Add(string(b[8:n]), uint16(len(b)-n))
	f.Add(`{}`, uint16(0))
	f.Add(`{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}`, uint16(12))
	f.Add(`{"__metadata__":{"format":"pt"},"b":{"dtype":"F4","shape":[2,0],`+
		`"data_offsets":[0,0]}}`, uint16(0))
	f.Add(`{"a":{"x":`+strings.Repeat("[", 40)+`}}`, uint16(0))
	f.Add(`{"__metadata__":{"format":"kv-capture/1","layers":"1","heads":"1","kv_heads":"1",`+
		`"head_dim":"2","rope_layout":"none"},`+
		`"layers.0.k":{"dtype":"F16","shape":[1,1,2],"data_offsets":[0,4]},`+
		`"layers.0.v":{"dtype":"F16","shape":[1,1,2],"data_offsets":[4,8]}}`, uint16(8))
	b = layersKV().bytes(f)
	n = 8 + int(binary.LittleEndian.Uint64(b))
	f.Add(string(b[8:n]), uint16(len(b)-n))
	for _, dtype := range []string{"F64", "I8", "F8_E4M3", "F8_E5M2"} {
		f.Add(`{"a":{"dtype":"`+dtype+`","shape":[1,2],"data_offsets":[0,2]}}`, uint16(16))
	}
	f.Fuzz(func(t *testing.T, header string, data uint16) {
		b := raw(header, 0)
		fuzzOne(t, append(b, pattern(1, int(data))...))
	})
}

func FuzzNpy(f *testing.F) {
	for _, h := range []string{
		"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n",
		"{'descr': '|u1', 'fortran_order': False, 'shape': (24,), }\n",
		`{"shape":(),"descr":"<f8","fortran_order":False}`,
		"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }",
		"{'descr': '>f8', 'fortran_order': True, 'shape': (3L, 1L), }",
		"{u'descr': u'>f2', 'fortran_order': True, 'shape': (2, 2, 3), }",
		"{'descr': '|i1', 'fortran_order': True, 'shape': (4, 6), }",
		"{'descr': '>c8', 'fortran_order': True, 'shape': (3, 1), }",
	} {
		for version := byte(1); version <= 3; version++ {
			f.Add(npyBytes(version, h, 24))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The fuzzer should not spend time on the magic.
		fuzzOne(t, append([]byte("\x93NUMPY"), bytes.TrimPrefix(b, []byte("\x93NUMPY"))...))
	})
}

func FuzzNpz(f *testing.F) {
	f.Add(smallNpz(f))
	f.Add(new(npz).bytes(f))
	f.Add(new(npz).add(f, "x/y.npy", zip.Deflate, arrayOf(">f2", true, 2, 2, 2)).bytes(f))
	for _, name := range []string{"stored.npz", "deflated.npz"} {
		b, err := os.ReadFile("testdata/numpy/" + name)
		noError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		lim := fuzzLimits
		lim.InflatedBytes = 1 << 20
		readOdd(t, append([]byte("PK\x03\x04"), bytes.TrimPrefix(b, []byte("PK\x03\x04"))...), lim)
	})
}

func FuzzGGUF(f *testing.F) {
	m, _ := smallModel()
	f.Add(m.Bytes())
	m.Set("split.count", uint32(2))
	f.Add(m.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		readOdd(t, append([]byte("GGUF"), bytes.TrimPrefix(b, []byte("GGUF"))...), fuzzLimits)
	})
}
