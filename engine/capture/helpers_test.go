// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// memFile is a file in memory with random access.
type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// raw makes a safetensors file from the text of a header and data.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func openBytes(b []byte, lim capture.Limits) (*capture.Source, error) {
	return capture.New("mem", bytes.NewReader(b), int64(len(b)), lim)
}

func mustOpen(t testing.TB, b []byte) *capture.Source {
	t.Helper()
	s, err := openBytes(b, capture.Limits{})
	noError(t, err)
	return s
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("unexpected error: %v", err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s = %v, want %v", what, got, want)
	}
}

var categories = []error{quant.ErrShape, quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported,
	quant.ErrUnavailable, quant.ErrBudget, quant.ErrFull, quant.ErrTooLarge, quant.ErrClosed,
	quant.ErrRange}

// wantCategory checks that err matches this category and no other, and contains all of text.
func wantCategory(t testing.TB, err, category error, text ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", category)
	}
	for _, c := range categories {
		if errors.Is(err, c) != (c == category) {
			t.Fatalf("error %q: is %v = %v, want category %v", err, c, errors.Is(err, c), category)
		}
	}
	for _, s := range append(text, "kvist/capture: ") {
		if !strings.Contains(err.Error(), s) {
			t.Fatalf("error %q does not say %q", err, s)
		}
	}
}

// wantFormatError checks an error about a file.
func wantFormatError(t testing.TB, err, category error, text ...string) *capture.FormatError {
	t.Helper()
	wantCategory(t, err, category, text...)
	var fe *capture.FormatError
	if !errors.As(err, &fe) {
		t.Fatalf("error %q is a %T, want a *FormatError", err, err)
	}
	if fe.File == "" || fe.Section == "" {
		t.Fatalf("error %q names no file or section: %+v", err, fe)
	}
	return fe
}

// file describes a test capture: metadata and tensors.
type file struct {
	meta  map[string]string
	decls []capture.Decl
}

// smallKV returns a capture of 2 of 4 layers (1 and 3), heads 4, kv_heads 2, 3 tokens, 2 tokens
// after, head_dim 8, head_dim_v 4.
func smallKV() *file {
	f := &file{meta: map[string]string{"format": "kv-capture/1", "model": "toy", "layers": "4",
		"heads": "4", "kv_heads": "2", "head_dim": "8", "rope_theta": "10000",
		"rope_layout": "half", "rope_applied": "true", "first_position": "5"}}
	for _, n := range []int{1, 3} {
		dtype := map[int]string{1: "F16", 3: "BF16"}[n]
		f.add(fmt.Sprintf("layers.%d.k", n), dtype, 2, 3, 8)
		f.add(fmt.Sprintf("layers.%d.v", n), "F32", 2, 3, 4)
	}
	f.add("layers.1.q", "F16", 4, 3, 8)
	f.add("layers.1.k_next", "F16", 2, 2, 8)
	f.add("layers.1.v_next", "F16", 2, 2, 4)
	f.add("layers.1.q_next", "F16", 4, 2, 8)
	f.add("layers.1.o_weight", "F16", 6, 16)
	f.add("layers.3.kept", "U8", 2, 3)
	f.add("layers.3.bias", "F32", 2, 3)
	f.add("tokens", "I32", 3)
	f.add("surprisal", "F32", 3)
	f.add("rope_inv_freq", "F32", 4)
	f.add("note", "I64", 2)
	return f
}

func (f *file) add(name, dtype string, shape ...int64) {
	f.decls = append(f.decls, capture.Decl{Name: name, DTypeName: dtype, Shape: shape})
}

// set changes the declaration of a tensor. An empty dtype removes it.
func (f *file) set(name, dtype string, shape ...int64) {
	for i := range f.decls {
		if f.decls[i].Name == name {
			f.decls = append(f.decls[:i], f.decls[i+1:]...)
			break
		}
	}
	if dtype != "" {
		f.add(name, dtype, shape...)
	}
}

// bytes writes the file. Every data byte depends on the tensor and on its place in it.
func (f *file) bytes(t testing.TB) []byte {
	t.Helper()
	var m memFile
	w, err := capture.NewWriter(&m, f.decls, f.meta)
	noError(t, err)
	for i, info := range w.Tensors() {
		noError(t, w.WriteAt(info.Name, 0, pattern(i, int(info.Bytes))))
	}
	noError(t, w.Close())
	equal(t, "bytes of the file", int64(len(m.b)), w.Size())
	return m.b
}

// pattern fills n bytes. Every fourth is small, so that they form finite float32 values.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*31 + i*7)
		if i%4 == 3 {
			b[i] &= 0x3f
		}
	}
	return b
}

// zeros reads as a header followed by zeros, and counts the bytes read.
type zeros struct {
	head []byte
	read int64
}

func (z *zeros) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(z.head)) {
		copy(p, z.head[off:])
	}
	z.read += int64(len(p))
	return len(p), nil
}

var _ io.ReaderAt = (*zeros)(nil)

// has reports whether a capture holds a part of a layer.
func has(s *capture.Source, layer int, p capture.Part) bool {
	_, ok := s.KV(layer, p)
	return ok
}

// dtype returns the element type of a part, or DTypeInvalid where the capture does not hold it.
func dtype(s *capture.Source, layer int, p capture.Part) quant.DType {
	t, _ := s.KV(layer, p)
	return t.DType()
}

// copyTensor writes the named tensor of s to w.
func copyTensor(w *capture.Writer, s *capture.Source, name string) error {
	info, _ := s.Lookup(name)
	raw := make([]byte, info.Bytes)
	if err := s.ReadAt(name, 0, raw); err != nil {
		return err
	}
	return w.WriteAt(name, 0, raw)
}
