// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

func npyBytes(version byte, header string, data int) []byte {
	b := append([]byte("\x93NUMPY"), version, 0)
	if version == 1 {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(header)))
	} else {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(header)))
	}
	return append(append(b, header...), make([]byte, data)...)
}

func TestNpy_Headers(t *testing.T) {
	const tail = ", 'fortran_order': False, 'shape': (2, 3), }"
	for _, c := range []struct {
		name, header string
		data         int
		want         error // nil: it opens
		text         string
	}{
		{"f4", "{'descr': '<f4'" + tail, 24, nil, "F32"},
		{"f2", "{'descr': '<f2'" + tail, 12, nil, "F16"},
		{"f8", "{'descr': '<f8'" + tail, 48, nil, "F64"},
		{"i4", "{'descr': '<i4'" + tail, 24, nil, "I32"},
		{"i8", "{'descr': '<i8'" + tail, 48, nil, "I64"},
		{"u1", "{'descr': '|u1'" + tail, 6, nil, "U8"},
		{"little u1", "{'descr': '<u1'" + tail, 6, nil, "U8"},
		{"bool", "{'descr': '|b1'" + tail, 6, nil, "BOOL"},
		{"no comma", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}\n", 24, nil, "F32"},
		{"other order", `{"shape":(2,3,),"fortran_order":False,"descr":"<f4"}`, 24, nil, "F32"},
		{"one dim", "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }", 24, nil, "F32"},
		{"no dim", "{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 4, nil, "F32"},
		{"no rows", "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 3), }", 0, nil, "F32"},

		{"big-endian", "{'descr': '>f4'" + tail, 24, nil, "F32"},
		{"big-endian u1", "{'descr': '>u1'" + tail, 6, nil, "U8"},
		{"Python 2", "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }", 24, nil, "F32"},
		{"Python 2 one dim", "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,), }", 24, nil, "F32"},
		{"Python 2 Unicode", "{u'descr': u'<f4', u'fortran_order': False, u'shape': (2, 3L), }", 24, nil,
			"F32"},
		{"object", "{'descr': '|O'" + tail, 24, quant.ErrUnsupported, `not supported: element type "|O"; array.astype`},
		{"structured", "{'descr': [('a', '<f4')]" + tail, 24, quant.ErrUnsupported, "structured_to_unstructured"},
		{"fortran", "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24, nil, "F32"},
		{"no element type", "{'descr': '<'" + tail, 24, quant.ErrCorrupt, `element type "<"`},
		{"order of a float", "{'descr': '|f4'" + tail, 24, quant.ErrUnsupported, `"|f4"`},
		{"two L", "{'descr': '<f4', 'fortran_order': False, 'shape': (2LL, 3), }", 24, quant.ErrCorrupt,
			`want ")"`},
		{"neither order", "{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3), }", 24,
			quant.ErrCorrupt, `want "False"`},
		{"int is no tuple", "{'descr': '<f4', 'fortran_order': False, 'shape': (6), }", 24,
			quant.ErrCorrupt, "want (6,)"},
		{"list", "{'descr': '<f4', 'fortran_order': False, 'shape': [6], }", 24,
			quant.ErrCorrupt, `want "("`},
		{"negative", "{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }", 24,
			quant.ErrCorrupt, `shape holds "-"`},
		{"empty dim", "{'descr': '<f4', 'fortran_order': False, 'shape': (,), }", 24,
			quant.ErrCorrupt, `shape holds ","`},
		{"huge dim", "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,), }",
			24, quant.ErrCorrupt, "shape holds"},
		{"overflow", "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
			24, quant.ErrCorrupt, "overflows"},
		{"too many dims", "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
			strings.Repeat("1,", 65) + "), }", 4, quant.ErrTooLarge, "more than 64 dims"},
		{"data missing", "{'descr': '<f4'" + tail, 23, quant.ErrCorrupt,
			"F32 of shape [2 3] has 24 bytes, the file has 23 of data"},
		{"data left", "{'descr': '<f4'" + tail, 25, quant.ErrCorrupt, "the file has 25 of data"},
		{"no descr", "{'fortran_order': False, 'shape': (2, 3), }", 24, quant.ErrCorrupt,
			`key "descr" is missing`},
		{"twice", "{'descr': '<f4', 'descr': '<f4'" + tail, 24, quant.ErrCorrupt, "twice"},
		{"unknown key", "{'x': 1, 'descr': '<f4'" + tail, 24, quant.ErrCorrupt, `unknown key "x"`},
		{"escape", `{'descr': '<f4\x00'` + tail, 24, quant.ErrCorrupt, "escape"},
		{"text after", "{'descr': '<f4'" + tail + "x", 24, quant.ErrCorrupt, "follow the dict"},
		{"two dicts", "{'descr': '<f4'" + tail + "{}", 24, quant.ErrCorrupt, "follow the dict"},
		{"not closed", "{'descr': '<f4'", 0, quant.ErrCorrupt, `want "}"`},
		{"empty", "", 0, quant.ErrCorrupt, `want "{"`},
		{"code", "__import__('os')", 0, quant.ErrCorrupt, `want "{"`},
	} {
		for version := byte(1); version <= 3; version++ {
			t.Run(fmt.Sprintf("%s/version=%d", c.name, version), func(t *testing.T) {
				s, err := openBytes(npyBytes(version, c.header, c.data), capture.Limits{})
				if c.want != nil {
					wantFormatError(t, err, c.want, c.text)
					return
				}
				noError(t, err)
				equal(t, "format", s.Info().Format, "npy")
				info, ok := s.Lookup("")
				equal(t, "has a tensor", ok, true)
				equal(t, "element type", info.DTypeName, c.text)
			})
		}
	}
	_, err := openBytes([]byte("\x93NUMPY\x04\x00\x00\x00\x00\x00"), capture.Limits{})
	wantFormatError(t, err, quant.ErrVersion, "version 4.0")
	_, err = openBytes(npyBytes(2, strings.Repeat(" ", 1<<17), 0), capture.Limits{})
	wantFormatError(t, err, quant.ErrTooLarge, "header of 131072 bytes, want at most 65536")
}

func TestNpy_RealFiles(t *testing.T) {
	for _, c := range []struct {
		name  string
		rows  int
		dim   int
		dtype quant.DType
	}{
		{"minilm-base-4096x384", 4096, 384, quant.Float32},
		{"minilm-queries-256x384", 256, 384, quant.Float32},
		{"minilm-top10-256x10", 256, 10, quant.DTypeInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := "../../testdata/" + c.name + ".npy"
			want, err := os.ReadFile(path)
			noError(t, err)
			s, err := capture.Open(path, capture.Limits{})
			noError(t, err)
			defer s.Close()
			equal(t, "is a KV capture", s.Info().KV, false)
			info := s.Tensors()[0]
			a, err := capture.RowsOf(s, "")
			if c.dtype == quant.DTypeInvalid {
				wantFormatError(t, err, quant.ErrUnsupported, "elements of type I32 have no rows")
				equal(t, "side tensors", len(s.SideTensors()), 1)
				equal(t, "matrices", len(s.ActTensors()), 0)
			} else {
				noError(t, err)
				equal(t, "element type", a.DType, c.dtype)
				equal(t, "rows", a.Rows, c.rows)
				equal(t, "dim", a.Dim, c.dim)
				checkEmbedding(t, s, a, want[info.Offset:])
			}
			// Writing it again gives NumPy's bytes.
			var m memFile
			w, err := capture.NewNpyWriter(&m, info.Decl)
			noError(t, err)
			noError(t, copyTensor(w, s, ""))
			noError(t, w.Close())
			if !bytes.Equal(m.b, want) {
				t.Fatalf("the copy differs: header %q, want %q", m.b[:128], want[:128])
			}
		})
	}
}

// checkEmbedding reads rows with both methods. Embeddings of MiniLM have length one.
func checkEmbedding(t *testing.T, s *capture.Source, a capture.ActTensor, data []byte) {
	t.Helper()
	const n = 100 // more than one piece of the reader's buffer
	rows := make([]float32, n*a.Dim)
	raw := make([]byte, n*a.Dim*4)
	first := a.Rows - n
	noError(t, a.Tensor.ReadF32(0, first, n, rows))
	noError(t, a.Tensor.Read(0, first, n, raw))
	if !bytes.Equal(raw, data[first*a.Dim*4:]) {
		t.Fatal("raw rows differ from the file")
	}
	for r := range n {
		var sum float64
		for i, v := range rows[r*a.Dim : (r+1)*a.Dim] {
			equal(t, "bits", math.Float32bits(v),
				binary.LittleEndian.Uint32(raw[4*(r*a.Dim+i):]))
			sum += float64(v) * float64(v)
		}
		if math.Abs(sum-1) > 1e-4 {
			t.Fatalf("row %d has squared length %v, want 1", first+r, sum)
		}
	}
}

func TestNpyWriter_RoundTrip(t *testing.T) {
	for _, shape := range [][]int64{{}, {0}, {7}, {3, 5}, {2, 0, 4}, {1, 2, 3, 4, 5, 6}} {
		for _, dtype := range []string{"F16", "F32", "F64", "I8", "I32", "I64", "U8", "BOOL", "C64"} {
			t.Run(fmt.Sprintf("dtype=%s/shape=%v", dtype, shape), func(t *testing.T) {
				var m memFile
				w, err := capture.NewNpyWriter(&m, capture.Decl{DTypeName: dtype, Shape: shape})
				noError(t, err)
				info := w.Tensors()[0]
				equal(t, "data aligned", info.Offset%64, 0)
				data := pattern(1, int(info.Bytes))
				noError(t, w.WriteAt("", 0, data))
				noError(t, w.Close())
				s := mustOpen(t, m.b)
				got := s.Tensors()[0]
				if got.DTypeName != dtype || !slices.Equal(got.Shape, shape) {
					t.Fatalf("read back %s %v", got.DTypeName, got.Shape)
				}
				back := make([]byte, got.Bytes)
				noError(t, s.ReadAt("", 0, back))
				equal(t, "data", string(back), string(data))
			})
		}
	}
	_, err := capture.NewNpyWriter(&memFile{}, capture.Decl{DTypeName: "BF16", Shape: []int64{1}})
	wantCategory(t, err, quant.ErrUnsupported, `no element type "BF16"`)
	_, err = capture.NewNpyWriter(&memFile{}, capture.Decl{DTypeName: "F32", Shape: []int64{-1}})
	wantCategory(t, err, quant.ErrShape, "[-1]")
}
