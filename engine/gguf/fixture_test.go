// SPDX-License-Identifier: Apache-2.0

package gguf_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

var readable = []gguf.TensorType{gguf.TensorF16, gguf.TensorBF16, gguf.TensorQ8_0, gguf.TensorQ4_0,
	gguf.TensorQ4_1, gguf.TensorQ5_0, gguf.TensorQ5_1, gguf.TensorQ2_K, gguf.TensorQ3_K,
	gguf.TensorQ4_K, gguf.TensorQ5_K, gguf.TensorQ6_K, gguf.TensorIQ4_NL, gguf.TensorIQ4_XS,
	gguf.TensorMXFP4}

// requireValues compares two rows of values: the same numbers, NaN where NaN is.
func requireValues(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i, w := range want {
		if g := got[i]; w != g && (w == w || g == g) {
			t.Fatalf("%s: value %d is %v (%#x), want %v (%#x)", what, i, g, math.Float32bits(g), w,
				math.Float32bits(w))
		}
	}
}

// TestFixture_Types compares every type with what the gguf Python package dequantizes the same bytes
// to: make gguf-fixtures writes the file.
func TestFixture_Types(t *testing.T) {
	f, err := gguf.Open("testdata/types.gguf")
	require.NoError(t, err)
	defer f.Close()
	require.Len(t, f.Tensors(), 2*len(readable))
	for _, typ := range readable {
		stored, ok := f.Tensor(typ.String())
		require.True(t, ok, "%s", typ)
		require.Equal(t, typ, stored.Type)
		ref, ok := f.Tensor(typ.String() + ".f32")
		require.True(t, ok, "%s", typ)
		want, err := f.Floats(ref)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(want), 1024)
		got, err := f.Floats(stored)
		require.NoError(t, err)
		requireValues(t, want, got, typ.String())

		var rows []float32
		require.NoError(t, f.EachRows(stored, func(first int64, x []float32) error {
			require.EqualValues(t, len(rows), first*stored.Cols())
			rows = append(rows, x...)
			return nil
		}))
		requireValues(t, want, rows, typ.String()+" by rows")

		var bytes []byte
		require.NoError(t, f.EachGroups(stored, func(_ int64, b []byte) { bytes = append(bytes, b...) }))
		clear(rows)
		require.NoError(t, gguf.Dequantize(typ, bytes, rows))
		requireValues(t, want, rows, typ.String()+" dequantized")
	}
}

// TestGroup: codes stay within what SplitGroup promises, whatever the bytes.
func TestSplitGroup_Ranges(t *testing.T) {
	limits := map[gguf.TensorType][2]int{gguf.TensorQ4_0: {-8, 7}, gguf.TensorQ4_1: {0, 15},
		gguf.TensorQ5_0: {-16, 15}, gguf.TensorQ5_1: {0, 31}, gguf.TensorQ8_0: {-128, 127},
		gguf.TensorQ2_K: {0, 3}, gguf.TensorQ3_K: {-4, 3}, gguf.TensorQ4_K: {0, 15},
		gguf.TensorQ5_K: {0, 31}, gguf.TensorQ6_K: {-32, 31}, gguf.TensorIQ4_NL: {-127, 113},
		gguf.TensorIQ4_XS: {-127, 113}, gguf.TensorMXFP4: {-12, 12}}
	f, err := gguf.Open("testdata/types.gguf")
	require.NoError(t, err)
	defer f.Close()
	for _, typ := range readable[2:] {
		tensor, _ := f.Tensor(typ.String())
		values, size := typ.Layout()
		require.True(t, typ.Quantized())
		least, most := 127, -128
		require.NoError(t, f.EachGroups(tensor, func(_ int64, b []byte) {
			for ; len(b) > 0; b = b[size:] {
				var g gguf.Group
				gguf.SplitGroup(typ, b, &g)
				require.EqualValues(t, values, g.Len)
				for _, c := range g.Codes[:g.Len] {
					least, most = min(least, int(c)), max(most, int(c))
				}
			}
		}))
		require.Equal(t, limits[typ], [2]int{least, most}, "%s: the fixture has every code", typ)
	}
	require.False(t, gguf.TensorF32.Quantized())
	require.False(t, gguf.TensorType(999).Quantized())
}

func TestDequantize_Errors(t *testing.T) {
	require.ErrorIs(t, gguf.Dequantize(16, nil, nil), quant.ErrUnsupported)
	require.ErrorIs(t, gguf.Dequantize(gguf.TensorQ4_K, make([]byte, 143), make([]float32, 256)), quant.ErrShape)
	require.ErrorIs(t, gguf.Dequantize(gguf.TensorQ4_K, make([]byte, 144), make([]float32, 255)), quant.ErrShape)
	require.NoError(t, gguf.Dequantize(gguf.TensorQ4_K, nil, nil))
}

func TestEachRows_Stops(t *testing.T) {
	f, err := gguf.Open("testdata/types.gguf")
	require.NoError(t, err)
	defer f.Close()
	tensor, _ := f.Tensor("Q6_K")
	stop := errors.New("enough")
	require.ErrorIs(t, f.EachRows(tensor, func(int64, []float32) error { return stop }), stop)
}

// TestOpen_Split reads the files that the gguf Python package splits a model into.
func TestOpen_Split(t *testing.T) {
	f, err := gguf.Open("testdata/split-00001-of-00003.gguf")
	require.NoError(t, err)
	require.Len(t, f.Tensors(), 5)
	for i, tensor := range f.Tensors() {
		x, err := f.Floats(tensor)
		require.NoError(t, err)
		require.Equal(t, float32(100*i+3), x[3], tensor.Name)
		require.Contains(t, f.TensorError(tensor, quant.ErrCorrupt).Error(),
			[]string{"split-00001", "split-00002", "split-00003"}[i/2])
	}
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	_, err = gguf.Open("testdata/split-00002-of-00003.gguf")
	requireFault(t, err, quant.ErrUnsupported, "part 2 of a model split into 3 files; name the first")
}

func requireFault(t *testing.T, err, category error, text string) {
	t.Helper()
	var fe *gguf.FileError
	require.ErrorAs(t, err, &fe)
	require.ErrorIs(t, err, category)
	require.ErrorContains(t, err, text)
}

// splitPart writes part no of count with one tensor of the given name.
func splitPart(t *testing.T, path string, no, count uint16, tensor, arch string) {
	b := &gguftest.Builder{}
	b.Set("split.no", no)
	b.Set("split.count", count)
	b.Set("split.tensors.count", int32(count))
	if arch != "" {
		b.Set("general.architecture", arch)
	}
	b.Add(tensor, gguf.TensorF32, make([]byte, 4), 1)
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
}

func TestOpen_SplitFaults(t *testing.T) {
	for _, c := range []struct {
		name     string
		write    func(t *testing.T, first, second string)
		category error
		text     string
	}{
		{"missing", func(*testing.T, string, string) {}, quant.ErrCorrupt, "part 2 of 2 is missing"},
		{"other number", func(t *testing.T, _, second string) {
			splitPart(t, second, 0, 2, "b", "x")
		}, quant.ErrCorrupt, "it is part 1 of 2, want part 2 of 2"},
		{"other count", func(t *testing.T, _, second string) {
			splitPart(t, second, 1, 3, "b", "x")
		}, quant.ErrCorrupt, "it is part 2 of 3, want part 2 of 2"},
		{"not split", func(t *testing.T, _, second string) {
			require.NoError(t, os.WriteFile(second, (&gguftest.Builder{}).Bytes(), 0o600))
		}, quant.ErrCorrupt, "of 0, want part 2 of 2"},
		{"tensor twice", func(t *testing.T, _, second string) {
			splitPart(t, second, 1, 2, "a", "x")
		}, quant.ErrCorrupt, `tensor "a"`},
		{"other model", func(t *testing.T, _, second string) {
			splitPart(t, second, 1, 2, "b", "y")
		}, quant.ErrCorrupt, "another model"},
		{"damaged", func(t *testing.T, _, second string) {
			require.NoError(t, os.WriteFile(second, []byte("GGUF"), 0o600))
		}, quant.ErrCorrupt, "m-00002-of-00002.gguf"},
		{"a folder", func(t *testing.T, _, second string) {
			require.NoError(t, os.Mkdir(second, 0o700))
		}, quant.ErrUnsupported, "m-00002-of-00002.gguf"},
		{"first is second", func(t *testing.T, first, second string) {
			splitPart(t, first, 1, 2, "a", "x")
			splitPart(t, second, 1, 2, "b", "x")
		}, quant.ErrCorrupt, "it is part 2 of 2, want part 1 of 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			first, second := filepath.Join(dir, "m-00001-of-00002.gguf"), filepath.Join(dir, "m-00002-of-00002.gguf")
			splitPart(t, first, 0, 2, "a", "x")
			c.write(t, first, second)
			_, err := gguf.Open(first)
			requireFault(t, err, c.category, c.text)
		})
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "model.gguf")
	splitPart(t, path, 0, 2, "a", "x")
	_, err := gguf.Open(path)
	requireFault(t, err, quant.ErrUnsupported, "want NAME-00001-of-00002.gguf")
	_, err = gguf.Open(filepath.Join(dir, "none-00001-of-00002.gguf"))
	require.ErrorIs(t, err, os.ErrNotExist)

	// The tensors that the parts should have together.
	splitPart(t, filepath.Join(dir, "n-00001-of-00003.gguf"), 0, 3, "a", "x")
	splitPart(t, filepath.Join(dir, "n-00002-of-00003.gguf"), 1, 3, "b", "")
	b := &gguftest.Builder{}
	b.Set("split.no", uint16(2))
	b.Set("split.count", uint16(3))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "n-00003-of-00003.gguf"), b.Bytes(), 0o600))
	_, err = gguf.Open(filepath.Join(dir, "n-00001-of-00003.gguf"))
	requireFault(t, err, quant.ErrCorrupt, "3 tensors, the 3 files have 2")
}
