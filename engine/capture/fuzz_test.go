// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// fuzzLimits keep an input from being slow for the size it has.
var fuzzLimits = capture.Limits{HeaderBytes: 1 << 16, Tensors: 256, Dims: 16, NameBytes: 256,
	TotalBytes: 1 << 20}

// checkSource checks what holds of every file that opens: its tensors cover its data, all rows
// and side data that it says it has can be read, and a copy of it has the same content.
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
	if s.Format() == capture.Safetensors {
		checkCopy(t, s)
	}
}

func checkRows(t testing.TB, s *capture.Source) {
	t.Helper()
	var list []capture.Tensor
	for _, a := range s.ActTensors() {
		list = append(list, a.Tensor)
	}
	for _, n := range s.Layers() {
		for p := capture.K; p <= capture.QNext; p++ {
			if x, ok := s.KV(n, p); ok {
				list = append(list, x)
			}
		}
		if x, ok := s.OWeight(n); ok {
			list = append(list, x)
		}
		noError(t, s.ReadBias(n, 0, 0, make([]float32, s.Tokens())))
		noError(t, s.ReadKept(n, 0, 0, make([]uint8, s.Tokens())))
	}
	if s.Kind() == capture.KV {
		noError(t, s.Geometry().Validate())
		err := s.ReadPositions(false, 0, make([]int64, s.Tokens()))
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
		noError(t, s.ReadRows(x, x.Heads()-1, x.Rows()-rows, rows, raw))
		noError(t, s.ReadRowsF32(x, x.Heads()-1, x.Rows()-rows, rows,
			make([]float32, rows*x.Dim())))
	}
}

func checkCopy(t testing.TB, s *capture.Source) {
	t.Helper()
	var decls []capture.Decl
	for _, info := range s.Tensors() {
		decls = append(decls, info.Decl)
	}
	var m memFile
	w, err := capture.NewWriter(&m, decls, s.Metadata())
	noError(t, err)
	for _, d := range decls {
		noError(t, w.Copy(d.Name, s, d.Name))
	}
	noError(t, w.Close())
	again := mustOpen(t, m.b)
	equal(t, "kind of the copy", again.Kind(), s.Kind())
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

// FuzzSafetensors makes up headers. Lengths that lie are for TestEveryTruncation_GivesTypedError
// and TestEveryHeaderBit_FlippedIsRefusedOrConsistent.
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
	} {
		for version := byte(1); version <= 3; version++ {
			f.Add(npyBytes(version, h, 24))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// The magic is what the fuzzer should not waste its time on.
		fuzzOne(t, append([]byte("\x93NUMPY"), bytes.TrimPrefix(b, []byte("\x93NUMPY"))...))
	})
}
