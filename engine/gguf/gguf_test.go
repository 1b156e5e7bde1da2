// SPDX-License-Identifier: Apache-2.0

package gguf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

// sample has a value of every type and tensors of every type.
func sample() *gguftest.Builder {
	b := &gguftest.Builder{}
	b.Set("u8", uint8(200))
	b.Set("i8", int8(-100))
	b.Set("u16", uint16(60000))
	b.Set("i16", int16(-30000))
	b.Set("u32", uint32(4e9))
	b.Set("i32", int32(-2e9))
	b.Set("f32", float32(1.5))
	b.Set("bool", true)
	b.Set("str", "grüße")
	b.Set("u64", uint64(1<<63))
	b.Set("i64", int64(-1<<62))
	b.Set("f64", 2.25)
	b.Set("strs", []string{"a", "", "bc"})
	b.Set("ints", []int32{-1, 2})
	b.Set("nested", []any{[]int32{1}, []int32{}, []int32{2, 3}})
	x := make([]float64, 64)
	for i := range x {
		x[i] = math.Sin(float64(i))
	}
	for _, typ := range []gguf.TensorType{gguf.TensorF32, gguf.TensorF16, gguf.TensorBF16,
		gguf.TensorQ8_0, gguf.TensorQ4_0, gguf.TensorQ4_1} {
		data, _ := gguftest.Store(typ, x)
		b.Add("t."+typ.String(), typ, data, 32, 2)
	}
	return b
}

// packed has a tensor of every quantized type, of zero bytes but the first.
func packed() *gguftest.Builder {
	b := &gguftest.Builder{}
	for _, typ := range readable {
		values, bytes := typ.Layout()
		data := make([]byte, 512/values*bytes)
		data[0] = 1
		b.Add("t."+typ.String(), typ, data, 256, 2)
	}
	return b
}

func TestRead_Values(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		b := sample()
		b.Version = version
		f, err := read(b.Bytes())
		require.NoError(t, err)
		require.Equal(t, version, f.Version)
		require.Len(t, f.Keys(), len(b.Keys))
		ints := map[string]int64{"u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4e9,
			"i32": -2e9, "i64": -1 << 62}
		for key, want := range ints {
			v, ok := f.Meta(key)
			require.True(t, ok)
			n, ok := v.Int()
			require.True(t, ok)
			require.Equal(t, want, n)
			require.Equal(t, fmt.Sprint(want), v.String())
		}
		for key, want := range map[string]float64{"f32": 1.5, "f64": 2.25, "u16": 60000} {
			v, _ := f.Meta(key)
			x, ok := v.Float()
			require.True(t, ok)
			require.Equal(t, want, x)
		}
		v, _ := f.Meta("u64")
		_, ok := v.Int()
		require.False(t, ok, "2^63 is no int64")
		v, _ = f.Meta("bool")
		yes, ok := v.Bool()
		require.True(t, ok && yes)
		_, ok = v.Float()
		require.False(t, ok)
		v, _ = f.Meta("str")
		s, _ := v.Str()
		require.Equal(t, "grüße", s)
		v, _ = f.Meta("strs")
		strs, _ := v.Strings()
		require.Equal(t, []string{"a", "", "bc"}, strs)
		v, _ = f.Meta("ints")
		list, _ := v.Ints()
		require.Equal(t, []int64{-1, 2}, list)
		v, _ = f.Meta("nested")
		require.Equal(t, 3, v.Len())
		require.Equal(t, "array of 3 array", v.String())
		_, ok = f.Meta("nothing")
		require.False(t, ok)
	}
}

func TestRead_Tensors(t *testing.T) {
	for _, align := range []int{0, 8, 4096} {
		b := sample()
		if align > 0 {
			b.Align = align
			b.Set("general.alignment", uint32(align))
		}
		f, err := read(b.Bytes())
		require.NoError(t, err)
		x := make([]float64, 64)
		for i := range x {
			x[i] = math.Sin(float64(i))
		}
		require.Len(t, f.Tensors(), 6)
		for _, tensor := range f.Tensors() {
			_, want := gguftest.Store(tensor.Type, x)
			got, err := f.Floats(tensor)
			require.NoError(t, err)
			for i := range want {
				require.Equal(t, float32(want[i]), got[i], "%s value %d", tensor.Name, i)
			}
		}
	}
}

// requireTyped checks that an error has a place and a category.
func requireTyped(t testing.TB, err error, msg ...any) {
	t.Helper()
	var fe *gguf.FileError
	require.ErrorAs(t, err, &fe, msg...)
	require.Equal(t, "test.gguf", fe.File)
	for _, c := range []error{quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported,
		quant.ErrTooLarge} {
		if errors.Is(err, c) {
			return
		}
	}
	t.Fatalf("%v has no category", err)
}

func TestRead_Truncated(t *testing.T) {
	data := sample().Bytes()
	for n := range data {
		_, err := read(data[:n])
		requireTyped(t, err, "cut to %d bytes", n)
	}
	// A reader that ends before its stated size.
	_, err := gguf.Read(bytes.NewReader(data[:300]), int64(len(data)), "test.gguf",
		gguf.Limits{})
	require.ErrorIs(t, err, quant.ErrCorrupt)
}

// readAll opens a file and reads all of it.
func readAll(data []byte) error {
	f, err := read(data)
	if err != nil {
		return err
	}
	for _, t := range f.Tensors() {
		if _, err := f.Floats(t); err != nil {
			return err
		}
		if err := f.EachRows(t, func(int64, []float32) error { return nil }); err != nil {
			return err
		}
	}
	for _, k := range f.Keys() {
		v, _ := f.Meta(k)
		_ = v.String()
		v.Ints()
	}
	return nil
}

func TestRead_FlippedBytes(t *testing.T) {
	data := sample().Bytes()
	flip(t, data, len(data))
	flip(t, packed().Bytes(), 700) // the list of tensors
}

// flip changes each of the first n bytes.
func flip(t *testing.T, data []byte, n int) {
	for i := range data[:n] {
		for _, x := range []byte{0xff, 0x01, 0x80} {
			data[i] ^= x
			if err := readAll(data); err != nil {
				requireTyped(t, err, "byte %d ^ %#x", i, x)
			}
			data[i] ^= x
		}
	}
}

func TestRead_Hostile(t *testing.T) {
	header := func(version uint32, tensors, keys uint64, rest ...any) []byte {
		var w bytes.Buffer
		w.WriteString("GGUF")
		gguftest.Put(&w, version, tensors, keys)
		gguftest.Put(&w, rest...)
		return w.Bytes()
	}
	const arr, str = uint32(9), uint32(8)
	deep := []any{"k", arr}
	for range 40 {
		deep = append(deep, arr, uint64(1))
	}
	tensor := func(name string, typ uint32, off uint64, dims ...uint64) []any {
		return []any{name, uint32(len(dims)), dims, typ, off}
	}
	pad := make([]byte, 4096)
	two := func(a, b []any) []byte { return header(3, 2, 0, append(append(a, b...), pad)...) }
	one := func(a []any) []byte { return header(3, 1, 0, append(a, pad)...) }
	for _, c := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"magic", []byte("GGUFX")[1:], quant.ErrCorrupt, "magic"},
		{"magic case", append([]byte("gguf"), pad...), quant.ErrCorrupt, "magic"},
		{"split", header(3, 0, 2, "split.no", uint32(2), uint16(1), "split.count", uint32(2), uint16(3)),
			quant.ErrUnsupported, "part 2 of a model split into 3 files; llama-gguf-split --merge"},
		{"version 1", header(1, 0, 0), quant.ErrVersion, "version 1"},
		{"version 4", header(4, 0, 0), quant.ErrVersion, "version 4"},
		{"big-endian", header(3<<24, 0, 0), quant.ErrUnsupported, "big-endian"},
		{"tensor count", header(3, 1<<63, 0), quant.ErrTooLarge, "tensors"},
		{"tensor count within limits", header(3, 60000, 0), quant.ErrCorrupt, "tensors"},
		{"key count", header(3, 0, math.MaxUint64), quant.ErrTooLarge, "keys"},
		{"key length", header(3, 0, 1, uint64(1<<40), pad), quant.ErrTooLarge, "key 0"},
		{"empty key", header(3, 0, 1, "", uint32(4), uint32(1)), quant.ErrCorrupt, "empty"},
		{"key twice", header(3, 0, 2, "k", uint32(0), uint8(1), "k", uint32(0), uint8(1)),
			quant.ErrCorrupt, `key "k"`},
		{"value type", header(3, 0, 1, "k", uint32(13), pad), quant.ErrCorrupt, "type 13"},
		{"string length", header(3, 0, 1, "k", str, uint64(1<<23), pad), quant.ErrCorrupt, "missing"},
		{"string limit", header(3, 0, 1, "k", str, uint64(1<<62), pad), quant.ErrTooLarge, "string"},
		{"array count", header(3, 0, 1, "k", arr, uint32(0), uint64(1<<23), pad),
			quant.ErrCorrupt, "missing"},
		{"array limit", header(3, 0, 1, "k", arr, uint32(12), uint64(1<<61), pad),
			quant.ErrTooLarge, "array"},
		{"array of what", header(3, 0, 1, "k", arr, uint32(99), uint64(1), pad),
			quant.ErrCorrupt, "type 99"},
		{"array of strings", header(3, 0, 1, "k", arr, str, uint64(1<<20), pad),
			quant.ErrCorrupt, "missing"},
		{"nesting", header(3, 0, 1, append(deep, pad)...), quant.ErrTooLarge, "deep"},
		{"no dims", one([]any{"t", uint32(0), uint32(0), uint64(0)}), quant.ErrCorrupt, "dimensions"},
		{"dims", one(tensor("t", 0, 0, 1, 1, 1, 1, 1)), quant.ErrCorrupt, "dimensions"},
		{"dim 0", one(tensor("t", 0, 0, 0)), quant.ErrCorrupt, "dimension 0"},
		{"dim huge", one(tensor("t", 0, 0, 1<<63)), quant.ErrCorrupt, "dimension 0"},
		{"product", one(tensor("t", 0, 0, 1<<40, 1<<40)), quant.ErrTooLarge, "2^56"},
		{"beyond file", one(tensor("t", 0, 0, 1<<20)), quant.ErrCorrupt, "beyond"},
		{"offset beyond", one(tensor("t", 0, 1<<40, 1)), quant.ErrCorrupt, "beyond"},
		{"offset overflows", one(tensor("t", 0, math.MaxUint64-31, 1)), quant.ErrCorrupt, "offset"},
		{"offset near 2^62", one(tensor("t", 0, 1<<62, 8)), quant.ErrCorrupt, "beyond"},
		{"unaligned", one(tensor("t", 0, 4, 1)), quant.ErrCorrupt, "multiple of 32"},
		{"partial group", one(tensor("t", 8, 0, 33)), quant.ErrCorrupt, "groups of 32"},
		{"type", one(tensor("blk.0.x", 16, 0, 256)), quant.ErrUnsupported, "IQ2_XXS"},
		{"K-quant partial", one(tensor("t", 12, 0, 128)), quant.ErrCorrupt, "groups of 256"},
		{"K-quant beyond", one(tensor("t", 14, 0, 256, 1<<20)), quant.ErrCorrupt, "beyond"},
		{"K-quant overlap", two(tensor("a", 12, 0, 512), tensor("b", 12, 256, 256)), quant.ErrCorrupt, "overlaps"},
		{"type unknown", one(tensor("blk.0.x", 999, 0, 256)), quant.ErrUnsupported, "999"},
		{"twice", two(tensor("t", 0, 0, 1), tensor("t", 0, 32, 1)), quant.ErrCorrupt, "twice"},
		{"overlap", two(tensor("a", 0, 32, 8), tensor("b", 0, 0, 9)), quant.ErrCorrupt, "overlaps"},
		{"alignment", header(3, 0, 1, "general.alignment", uint32(4), uint32(24)),
			quant.ErrCorrupt, "power of two"},
		{"alignment 0", header(3, 0, 1, "general.alignment", uint32(4), uint32(0)),
			quant.ErrCorrupt, "power of two"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := read(c.data)
			requireTyped(t, err)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}

func TestRead_Limits(t *testing.T) {
	data := sample().Bytes()
	for _, lim := range []gguf.Limits{{MaxKeys: 3}, {MaxTensors: 5}, {MaxStringBytes: 2},
		{MaxArrayLen: 1}, {MaxMetaBytes: 200}, {MaxNesting: 1}} {
		_, err := gguf.Read(bytes.NewReader(data), int64(len(data)), "test.gguf", lim)
		require.ErrorIs(t, err, quant.ErrTooLarge, "%+v", lim)
	}
}

type failingReader struct{ after int64 }

var errDisk = errors.New("disk on fire")

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.after {
		return 0, errDisk
	}
	return len(p), nil
}

func TestRead_ReaderErrors(t *testing.T) {
	_, err := gguf.Read(failingReader{}, 1000, "test.gguf", gguf.Limits{})
	require.ErrorIs(t, err, errDisk)
	data := sample().Bytes()
	f, err := gguf.Read(&cutReader{data, int64(len(data)) - 40}, int64(len(data)), "test.gguf",
		gguf.Limits{})
	require.NoError(t, err)
	tensors := f.Tensors()
	_, err = f.Floats(tensors[len(tensors)-1])
	require.ErrorIs(t, err, quant.ErrCorrupt)
	requireTyped(t, err)
}

// cutReader lost its end after it was opened.
type cutReader struct {
	data []byte
	end  int64
}

func (r *cutReader) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, r.data[min(off, r.end):r.end])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, os.WriteFile(path, sample().Bytes(), 0o600))
	f, err := gguf.Open(path)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	_, err = gguf.Open(filepath.Dir(path))
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = gguf.Open(path + "x")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func read(data []byte) (*gguf.File, error) {
	return gguf.Read(bytes.NewReader(data), int64(len(data)), "test.gguf", gguf.Limits{})
}

func FuzzRead(f *testing.F) {
	f.Add(sample().Bytes())
	f.Add(packed().Bytes())
	f.Add(binary.LittleEndian.AppendUint32([]byte("GGUF"), 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := readAll(data); err != nil {
			requireTyped(t, err)
		}
	})
}
