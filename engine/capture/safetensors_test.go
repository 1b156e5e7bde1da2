// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

func TestSafetensors_GoodHeaders(t *testing.T) {
	for _, c := range []struct {
		name, header string
		data         int
		tensors      int
	}{
		{"empty", `{}`, 0, 0},
		{"spaces", "{ \"a\" :{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]} }  \n", 2, 1},
		{"scalar", `{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}`, 8, 1},
		{"zero size", `{"a":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]},` +
			`"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},` +
			`"c":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}`, 1, 3},
		{"any order", `{"b":{"data_offsets":[1,3],"shape":[2],"dtype":"I8"},` +
			`"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}`, 3, 2},
		{"metadata null", `{"__metadata__":null}`, 0, 0},
		{"other format", `{"__metadata__":{"format":"pt"}}`, 0, 0},
		{"unknown field", `{"a":{"x":[{"y":[1,"z"]}],"dtype":"U8","shape":[1],` +
			`"data_offsets":[0,1]}}`, 1, 1},
		{"four bits", `{"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}}`, 3, 1},
		{"six bits", `{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}`, 3, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustOpen(t, raw(c.header, c.data))
			equal(t, "is a KV capture", s.Info().KV, false)
			equal(t, "format", s.Info().Format, "safetensors")
			equal(t, "tensors", len(s.Tensors()), c.tensors)
		})
	}
}

func TestSafetensors_BadHeaders(t *testing.T) {
	one := func(dtype, shape, offsets string) string {
		return `{"a":{"dtype":"` + dtype + `","shape":` + shape + `,"data_offsets":` + offsets + `}}`
	}
	u8 := func(name, offsets, n string) string {
		return `"` + name + `":{"dtype":"U8","shape":[` + n + `],"data_offsets":` + offsets + `}`
	}
	for _, c := range []struct {
		name, header string
		data         int
		want         error
		text         string
	}{
		{"overlap", "{" + u8("a", "[0,4]", "4") + "," + u8("b", "[3,5]", "2") + "}", 5,
			quant.ErrCorrupt, `tensor "b" at byte 116: it overlaps tensor "a" by 1 bytes`},
		{"same place", "{" + u8("a", "[0,4]", "4") + "," + u8("b", "[0,4]", "4") + "}", 4,
			quant.ErrCorrupt, "overlaps"},
		{"gap", "{" + u8("a", "[0,4]", "4") + "," + u8("b", "[6,8]", "2") + "}", 8,
			quant.ErrCorrupt, "the 2 bytes before it belong to no tensor"},
		{"gap at the front", "{" + u8("a", "[1,4]", "3") + "}", 4,
			quant.ErrCorrupt, "the 1 bytes before it"},
		{"bytes after", "{" + u8("a", "[0,4]", "4") + "}", 7,
			quant.ErrCorrupt, "3 bytes after the data of the last tensor"},
		{"bytes after nothing", "{}", 1, quant.ErrCorrupt, "1 bytes after"},
		{"beyond the end", "{" + u8("a", "[0,9]", "9") + "}", 4,
			quant.ErrCorrupt, "data_offsets [0 9], the file has 4 bytes of data"},
		{"backwards", "{" + u8("a", "[4,0]", "4") + "}", 4, quant.ErrCorrupt, "end before they begin"},
		{"wrong size", one("F16", "[3]", "[0,4]"), 4, quant.ErrCorrupt,
			"data_offsets [0 4] span 4 bytes, F16 of shape [3] has 6"},
		{"half a byte", one("F4", "[3]", "[0,2]"), 2, quant.ErrCorrupt, "12 bits, not whole bytes"},
		{"overflow shape", one("U8", "[4294967296,4294967296]", "[0,0]"), 0,
			quant.ErrCorrupt, "overflows 64 bits"},
		{"overflow bytes", one("F64", "[4611686018427387904]", "[0,0]"), 0,
			quant.ErrCorrupt, "overflows 64 bits"},
		{"overflow before zero", one("U8", "[4294967296,4294967296,0]", "[0,0]"), 0,
			quant.ErrCorrupt, "overflows 64 bits"},
		{"negative", one("U8", "[-1]", "[0,1]"), 1, quant.ErrCorrupt, "shape holds -1"},
		{"negative offset", one("U8", "[1]", "[-1,0]"), 1, quant.ErrCorrupt, "data_offsets holds -1"},
		{"fraction", one("U8", "[1.0]", "[0,1]"), 1, quant.ErrCorrupt, "shape holds 1.0"},
		{"exponent", one("U8", "[1e0]", "[0,1]"), 1, quant.ErrCorrupt, "shape holds 1e0"},
		{"number too large", one("U8", "[9223372036854775808]", "[0,1]"), 1,
			quant.ErrCorrupt, "want an integer of [0, 2^63)"},
		{"text in shape", one("U8", `["1"]`, "[0,1]"), 1, quant.ErrCorrupt, `shape holds "1"`},
		{"list in shape", one("U8", "[[1]]", "[0,1]"), 1, quant.ErrCorrupt, "shape holds ["},
		{"shape is null", one("U8", "null", "[0,1]"), 1, quant.ErrCorrupt, "shape is null, want ["},
		{"one offset", one("U8", "[1]", "[0]"), 1, quant.ErrCorrupt, "data_offsets [0], want two"},
		{"three offsets", one("U8", "[1]", "[0,1,2]"), 1, quant.ErrCorrupt, "more than 2 numbers"},
		{"unknown dtype", one("F128", "[1]", "[0,16]"), 16, quant.ErrUnsupported, `not supported: unknown element type "F128"`},
		{"lower case dtype", one("f32", "[1]", "[0,4]"), 4, quant.ErrUnsupported, `"f32"`},
		{"dtype is a number", `{"a":{"dtype":4,"shape":[1],"data_offsets":[0,1]}}`, 1,
			quant.ErrCorrupt, "dtype is 4, want a string"},
		{"no dtype", `{"a":{"shape":[1],"data_offsets":[0,1]}}`, 1, quant.ErrCorrupt,
			`field "dtype" is missing`},
		{"no shape", `{"a":{"dtype":"U8","data_offsets":[0,1]}}`, 1, quant.ErrCorrupt,
			`field "shape" is missing`},
		{"no offsets", `{"a":{"dtype":"U8","shape":[1]}}`, 1, quant.ErrCorrupt,
			`field "data_offsets" is missing`},
		{"duplicate tensor", "{" + u8("a", "[0,1]", "1") + "," + u8("a", "[1,2]", "1") + "}", 2,
			quant.ErrCorrupt, `name "a" appears twice`},
		{"duplicate by escape", "{" + u8("a", "[0,1]", "1") + "," + u8(`\u0061`, "[1,2]", "1") + "}",
			2, quant.ErrCorrupt, `name "a" appears twice`},
		{"duplicate field", `{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1,
			quant.ErrCorrupt, `field "dtype" appears twice`},
		{"duplicate key", `{"__metadata__":{"k":"1","k":"2"}}`, 0, quant.ErrCorrupt,
			`metadata at byte`},
		{"duplicate metadata", `{"__metadata__":{},"__metadata__":{}}`, 0, quant.ErrCorrupt, "twice"},
		{"metadata number", `{"__metadata__":{"k":1}}`, 0, quant.ErrCorrupt, "want a string"},
		{"metadata nested", `{"__metadata__":{"k":{}}}`, 0, quant.ErrCorrupt, "want a string"},
		{"metadata list", `{"__metadata__":[]}`, 0, quant.ErrCorrupt, "want {"},
		{"not UTF-8", "{\"\xff\":{}}", 0, quant.ErrCorrupt, "not UTF-8"},
		{"tensor is text", `{"a":"b"}`, 0, quant.ErrCorrupt, `declaration is "b", want {`},
		{"bomb of lists", `{"a":{"x":` + strings.Repeat("[", 100000) + `}}`, 0,
			quant.ErrTooLarge, "nested deeper than 32"},
		{"bomb of objects", `{"a":{"x":` + strings.Repeat(`{"x":`, 100000) + `}}`, 0,
			quant.ErrTooLarge, "nested deeper than 32"},
		{"bomb at the top", `{"a":` + strings.Repeat("[", 100000) + `}`, 0,
			quant.ErrCorrupt, "want {"},
		{"not closed", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}`, 1,
			quant.ErrCorrupt, "not JSON"},
		{"trailing comma", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}`, 1,
			quant.ErrCorrupt, "not JSON"},
		{"no colon", `{"a" {}}`, 0, quant.ErrCorrupt, "not JSON"},
		{"two objects", `{}{}`, 0, quant.ErrCorrupt, "follow the JSON object"},
		{"zero byte after", "{}\x00", 0, quant.ErrCorrupt, "follow the JSON object"},
		{"later version", `{"__metadata__":{"format":"kv-capture/3"}}`, 0, quant.ErrVersion,
			`format is "kv-capture/3", want "kv-capture/1" or "kv-capture/2"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openBytes(raw(c.header, c.data), capture.Limits{})
			wantFormatError(t, err, c.want, c.text)
		})
	}
}

func TestSafetensors_HeaderLength(t *testing.T) {
	good := raw(`{}`, 0)
	for _, n := range []uint64{3, 1 << 32, 1 << 62, 1 << 63, math.MaxUint64, math.MaxUint64 - 7} {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b, n)
		_, err := openBytes(b, capture.Limits{})
		wantFormatError(t, err, quant.ErrCorrupt, "the file has 2 after its length")
	}
	// One byte more than the reference implementation accepts, in a file that could hold it.
	head := binary.LittleEndian.AppendUint64(nil, 100_000_001)
	z := &zeros{head: append(head, '{')}
	_, err := capture.New("big", z, 1<<30, capture.Limits{})
	wantFormatError(t, err, quant.ErrTooLarge, "header of 100000001 bytes, want at most 100000000")
	if z.read > 1<<10 {
		t.Fatalf("%d bytes were read to refuse a length", z.read)
	}
	_, err = openBytes([]byte("text without a header"), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "not supported: a file that starts with 74 65",
		"want safetensors, .npy, .npz or GGUF")
	_, err = capture.New("neg", z, -1, capture.Limits{})
	wantCategory(t, err, quant.ErrShape, "size -1")
}

func TestSafetensors_Limits(t *testing.T) {
	meta := raw(`{"__metadata__":{"a":"","b":""}}`, 0)
	_, err := openBytes(meta, capture.Limits{MetaKeys: 1})
	wantFormatError(t, err, quant.ErrTooLarge, "metadata at byte", "more than 1 keys")
	_, err = openBytes(meta, capture.Limits{MetaKeys: 2})
	noError(t, err)
	b := raw(`{"abc":{"dtype":"U8","shape":[1,1,1],"data_offsets":[0,1]},`+
		`"d":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2)
	for _, c := range []struct {
		lim  capture.Limits
		text string
	}{
		{capture.Limits{HeaderBytes: 16}, "header of 111 bytes, want at most 16"},
		{capture.Limits{Tensors: 1}, "more than 1 tensors"},
		{capture.Limits{Dims: 2}, "more than 2 numbers"},
		{capture.Limits{NameBytes: 2}, "name of 3 bytes, want at most 2"},
		{capture.Limits{TotalBytes: 100}, "want at most 100"},
	} {
		_, err := openBytes(b, c.lim)
		wantFormatError(t, err, quant.ErrTooLarge, c.text)
	}
	_, err = openBytes(b, capture.Limits{HeaderBytes: 111, Tensors: 2, Dims: 3, NameBytes: 3,
		TotalBytes: 121})
	noError(t, err)
}

func TestEveryTruncation_GivesTypedError(t *testing.T) {
	var npy memFile
	w, err := capture.NewNpyWriter(&npy, capture.Decl{DTypeName: "F32", Shape: []int64{3, 5}})
	noError(t, err)
	noError(t, w.WriteAt("", 0, make([]byte, 60)))
	for name, b := range map[string][]byte{"kv": smallKV().bytes(t), "npy": npy.b} {
		t.Run(name, func(t *testing.T) {
			mustOpen(t, b)
			for n := range b {
				_, err := openBytes(b[:n], capture.Limits{})
				wantFormatError(t, err, quant.ErrCorrupt)
				// The size is right, but the reader ends early, also while it reads rows.
				s, err := capture.New("cut", bytes.NewReader(b[:n]), int64(len(b)), capture.Limits{})
				if err == nil {
					ts := s.Tensors()
					err = s.ReadAt(ts[len(ts)-1].Name, 0, make([]byte, ts[len(ts)-1].Bytes))
				}
				wantFormatError(t, err, quant.ErrCorrupt)
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("cut at %d: %v is not io.ErrUnexpectedEOF", n, err)
				}
			}
			_, err := openBytes(append(bytes.Clone(b), 0), capture.Limits{})
			wantFormatError(t, err, quant.ErrCorrupt)
		})
	}
}

func TestEveryHeaderBit_FlippedIsRefusedOrConsistent(t *testing.T) {
	b := smallKV().bytes(t)
	n := 8 + int(binary.LittleEndian.Uint64(b))
	for i := range 8 * n {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		s, err := openBytes(c, capture.Limits{})
		if err == nil {
			checkSource(t, s, int64(len(c)))
			continue
		}
		var fe *capture.FormatError
		if !errors.As(err, &fe) {
			t.Fatalf("bit %d: %v is a %T", i, err, err)
		}
	}
}

type failingReader struct{ err error }

func (f failingReader) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestReaderErrors_ArePassedOn(t *testing.T) {
	cause := errors.New("the disk is on fire")
	_, err := capture.New("x", failingReader{cause}, 100, capture.Limits{})
	if !errors.Is(err, cause) || errors.Is(err, quant.ErrCorrupt) {
		t.Fatalf("got %v, want the reader's own error", err)
	}
}

func TestOpen_NotAFile(t *testing.T) {
	dir := t.TempDir()
	_, err := capture.Open(dir, capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "not a regular file")
	_, err = capture.Open(filepath.Join(dir, "none"), capture.Limits{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v, want ErrNotExist", err)
	}
}

func TestRawAccess(t *testing.T) {
	s := mustOpen(t, raw(`{"a":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}`, 16))
	noError(t, s.ReadAt("a", 16, nil))
	noError(t, s.ReadAt("a", 4, make([]byte, 12)))
	wantCategory(t, s.ReadAt("b", 0, nil), quant.ErrShape, `"b" is not in the file`)
	wantCategory(t, s.ReadAt("a", 5, make([]byte, 12)), quant.ErrShape, "12 bytes", "from byte 5")
	wantCategory(t, s.ReadAt("a", -1, nil), quant.ErrShape)
	wantCategory(t, s.ReadAt("a", math.MaxInt64, make([]byte, 1)), quant.ErrShape)
	noError(t, s.Close())
	noError(t, s.Close())
	wantCategory(t, s.ReadAt("a", 0, nil), quant.ErrClosed)
}

// TestHugeFile_ReadsOnlyWhatIsAsked opens a sparse capture of 20 GB.
func TestHugeFile_ReadsOnlyWhatIsAsked(t *testing.T) {
	const tokens = 20_000_000_000 / (2 * 2 * 128 * 2)
	f := &file{meta: map[string]string{"format": "kv-capture/1", "layers": "1", "heads": "2",
		"kv_heads": "2", "head_dim": "128", "rope_layout": "none"}}
	f.add("layers.0.k", "F16", 2, tokens, 128)
	f.add("layers.0.v", "F16", 2, tokens, 128)
	path := filepath.Join(t.TempDir(), "sparse.safetensors")
	out, err := os.Create(path)
	noError(t, err)
	w, err := capture.NewWriter(out, f.decls, f.meta)
	noError(t, err)
	if err := out.Truncate(w.Size()); err != nil {
		t.Skipf("no sparse file of %d bytes here: %v", w.Size(), err)
	}
	row := make([]byte, 256)
	row[0], row[1] = 0x00, 0x3c // 1.0
	noError(t, w.WriteAt("layers.0.v", 2*tokens*256-256, row))
	noError(t, out.Close())

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := capture.Open(path, capture.Limits{})
	noError(t, err)
	defer s.Close()
	v, ok := s.KV(0, capture.V)
	equal(t, "V is there", ok, true)
	equal(t, "tokens", s.Info().Tokens, tokens)
	dst := make([]float32, 128)
	noError(t, v.ReadF32(1, tokens-1, 1, dst))
	equal(t, "first value of the last row", dst[0], 1)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Fatalf("%d bytes were allocated to read a row", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		_ = v.ReadF32(1, tokens-1, 1, dst)
		_ = v.Read(0, 7, 1, row)
	}); n > 1 { // the pool may be emptied by a collection now and then
		t.Fatalf("%v allocations to read two rows, want none", n)
	}
}
