// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

func TestWriter_Layout(t *testing.T) {
	decls := []capture.Decl{
		{Name: "b", DTypeName: "U8", Shape: []int64{3}},
		{Name: "z", DTypeName: "F32", Shape: []int64{1}},
		{Name: "a", DTypeName: "F16", Shape: []int64{1, 3}},
		{Name: "<é\">", DTypeName: "I64", Shape: []int64{}},
		{Name: "y", DTypeName: "F32", Shape: []int64{0, 2}},
	}
	meta := map[string]string{"k2": "v\n", "k1": "<&>"}
	var m memFile
	w, err := capture.NewWriter(&m, decls, meta)
	noError(t, err)
	want := `{"__metadata__":{"k1":"<&>","k2":"v\n"},` +
		`"<é\">":{"dtype":"I64","shape":[],"data_offsets":[0,8]},` +
		`"y":{"dtype":"F32","shape":[0,2],"data_offsets":[8,8]},` +
		`"z":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},` +
		`"a":{"dtype":"F16","shape":[1,3],"data_offsets":[12,18]},` +
		`"b":{"dtype":"U8","shape":[3],"data_offsets":[18,21]}}`
	equal(t, "header", strings.TrimRight(string(m.b[8:]), " "), want)
	equal(t, "padding", len(m.b)%8, 0)
	equal(t, "size", w.Size(), int64(len(m.b)+21))

	// Any order of declarations gives the same bytes, and the writer does not keep the caller's
	// shapes.
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		rng.Shuffle(len(decls), func(i, j int) { decls[i], decls[j] = decls[j], decls[i] })
		var again memFile
		_, err := capture.NewWriter(&again, decls, meta)
		noError(t, err)
		if !bytes.Equal(again.b, m.b) {
			t.Fatalf("header %q, want %q", again.b, m.b)
		}
	}
}

func TestWriter_Refuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		decls []capture.Decl
		meta  map[string]string
		want  error
		text  string
	}{
		{"twice", []capture.Decl{{Name: "a", DTypeName: "U8"}, {Name: "a", DTypeName: "I8"}}, nil,
			quant.ErrShape, `"a" is declared twice`},
		{"metadata name", []capture.Decl{{Name: "__metadata__", DTypeName: "U8"}}, nil,
			quant.ErrShape, "no tensor can be named"},
		{"name not UTF-8", []capture.Decl{{Name: "\xff", DTypeName: "U8"}}, nil, quant.ErrShape,
			"not UTF-8"},
		{"long name", []capture.Decl{{Name: strings.Repeat("n", 5000), DTypeName: "U8"}}, nil,
			quant.ErrShape, "5000 bytes"},
		{"dtype", []capture.Decl{{Name: "a", DTypeName: "F80"}}, nil, quant.ErrUnsupported, `"F80"`},
		{"negative", []capture.Decl{{Name: "a", DTypeName: "U8", Shape: []int64{-2}}}, nil,
			quant.ErrShape, "[-2]"},
		{"half a byte", []capture.Decl{{Name: "a", DTypeName: "F4", Shape: []int64{1}}}, nil,
			quant.ErrShape, "F4 of shape [1]"},
		{"too large", []capture.Decl{{Name: "a", DTypeName: "U8", Shape: []int64{math.MaxInt64}}},
			nil, quant.ErrShape, "is invalid"},
		{"sum too large", []capture.Decl{
			{Name: "a", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "b", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "c", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "d", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "e", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "f", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "g", DTypeName: "U8", Shape: []int64{1 << 60}},
			{Name: "h", DTypeName: "U8", Shape: []int64{1 << 60}},
		}, nil, quant.ErrShape, "2^63"},
		{"metadata not UTF-8", nil, map[string]string{"k": "\xff"}, quant.ErrShape, `metadata "k"`},
		{"dims", []capture.Decl{{Name: "a", DTypeName: "U8", Shape: make([]int64, 65)}}, nil,
			quant.ErrShape, "65 dims"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m memFile
			_, err := capture.NewWriter(&m, c.decls, c.meta)
			wantCategory(t, err, c.want, c.text)
			equal(t, "bytes written", len(m.b), 0)
		})
	}
}

func TestWriter_Coverage(t *testing.T) {
	start := func() *capture.Writer {
		w, err := capture.NewWriter(&memFile{}, []capture.Decl{
			{Name: "a", DTypeName: "U8", Shape: []int64{10}},
			{Name: "e", DTypeName: "U8", Shape: []int64{0}}}, nil)
		noError(t, err)
		return w
	}
	for _, c := range []struct {
		writes [][2]int64 // [lo, hi)
		text   string     // "": all is there
	}{
		{nil, "bytes [0, 10) of tensor \"a\""},
		{[][2]int64{{0, 10}}, ""},
		{[][2]int64{{5, 10}, {0, 5}}, ""},
		{[][2]int64{{0, 6}, {4, 10}}, ""},
		{[][2]int64{{0, 2}, {4, 6}, {8, 10}, {1, 9}}, ""},
		{[][2]int64{{0, 2}, {4, 6}, {8, 10}, {2, 4}}, "bytes [6, 8)"},
		{[][2]int64{{0, 9}}, "bytes [9, 10)"},
		{[][2]int64{{1, 10}}, "bytes [0, 1)"},
		{[][2]int64{{3, 3}, {0, 3}, {7, 10}}, "bytes [3, 7)"},
	} {
		w := start()
		for _, r := range c.writes {
			noError(t, w.WriteAt("a", r[0], make([]byte, r[1]-r[0])))
		}
		err := w.Close()
		if c.text == "" {
			noError(t, err)
		} else {
			wantCategory(t, err, quant.ErrShape, c.text)
		}
		noError(t, w.Close())
		wantCategory(t, w.WriteAt("a", 0, []byte{1}), quant.ErrClosed)
	}
	w := start()
	wantCategory(t, w.WriteAt("b", 0, nil), quant.ErrShape, `"b": it was not declared`)
	wantCategory(t, w.WriteAt("a", 9, []byte{1, 2}), quant.ErrShape, "2 bytes from byte 9, but it has 10")
	wantCategory(t, w.WriteAt("a", -1, []byte{1}), quant.ErrShape)
	wantCategory(t, w.WriteAt("a", math.MaxInt64, []byte{1}), quant.ErrShape)
}

// TestWriter_CoverageAgainstBytes compares the ranges with a map of single bytes.
func TestWriter_CoverageAgainstBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		const n = 40
		w, err := capture.NewWriter(&memFile{}, []capture.Decl{
			{Name: "a", DTypeName: "U8", Shape: []int64{n}}}, nil)
		noError(t, err)
		var seen [n]bool
		for range rng.IntN(40) {
			lo := rng.IntN(n)
			hi := lo + rng.IntN(min(5, n-lo)+1)
			noError(t, w.WriteAt("a", int64(lo), make([]byte, hi-lo)))
			for i := lo; i < hi; i++ {
				seen[i] = true
			}
		}
		equal(t, "missing bytes are noticed", w.Close() != nil, slices.Contains(seen[:], false))
	}
}

func TestWriter_ParallelIntoAtomicFile(t *testing.T) {
	f := smallKV()
	want := f.bytes(t)
	path := filepath.Join(t.TempDir(), "out.safetensors")
	out, err := atomicfile.Create(path, false)
	noError(t, err)
	defer out.Abort()
	w, err := capture.NewWriter(out, f.decls, f.meta)
	noError(t, err)
	var wg sync.WaitGroup
	for i, info := range w.Tensors() {
		data := pattern(i, int(info.Bytes))
		for off := range data { // byte by byte, last first
			wg.Add(1)
			go func() {
				defer wg.Done()
				at := len(data) - 1 - off
				if err := w.WriteAt(info.Name, int64(at), data[at:at+1]); err != nil {
					t.Error(err)
				}
			}()
		}
	}
	wg.Wait()
	noError(t, w.Close())
	noError(t, out.Commit())
	got, err := os.ReadFile(path)
	noError(t, err)
	if !bytes.Equal(got, want) {
		t.Fatal("the file differs from the one written in order")
	}
	s, err := capture.Open(path, capture.Limits{})
	noError(t, err)
	equal(t, "name", s.Info().Name, path)
	noError(t, s.Close())
}

type failingWriter struct{ after int }

var errDiskFull = errors.New("disk full")

func (f *failingWriter) WriteAt(p []byte, _ int64) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errDiskFull
	}
	return len(p), nil
}

func TestWriter_ErrorsOfTheFile(t *testing.T) {
	decls := []capture.Decl{{Name: "a", DTypeName: "U8", Shape: []int64{1}}}
	_, err := capture.NewWriter(&failingWriter{0}, decls, nil)
	equal(t, "error of the header", errors.Is(err, errDiskFull), true)
	w, err := capture.NewWriter(&failingWriter{1}, decls, nil)
	noError(t, err)
	equal(t, "error of data", errors.Is(w.WriteAt("a", 0, []byte{1}), errDiskFull), true)
	wantCategory(t, w.Close(), quant.ErrShape, "never written") // what failed does not count
}
