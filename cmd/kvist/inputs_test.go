// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/quant"
)

// cmdInput writes one of the inputs that people have, or that are not read. All but those of a KV
// capture count 0, 1, 2, ... in 40 rows of 16.
func cmdInput(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, args, 2, "input KIND FILE")
	b := &inputBuilder{ts: ts}
	m := map[string]func(){
		"f64":       func() { b.rows("F64", 1, nil) },
		"f64-huge":  func() { b.rows("F64", 1, func(v []float64) { v[7*16+5] = 1e300 }) },
		"f64-tenth": func() { b.rows("F64", 1, func(v []float64) { v[7*16+5] = 0.1 }) },
		"f16":       func() { b.rows("F16", 1, nil) },
		"i8":        func() { b.rows("I8", 0, nil) },
		"e4m3":      func() { b.rows("F8_E4M3", 0, nil) },
		"e4m3-nan":  func() { b.rows("F8_E4M3", 0, nil); b.out[len(b.out)-1] = 0xff },
		"i64":       func() { b.rows("I64", 1, nil) },
		"empty":     func() { b.npy("<f4", "(0, 64)", 0) },
		"wide":      func() { b.npy("<f4", "(2, 70000)", 4*2*70000) },
		"scalar":    func() { b.npy("<f4", "()", 4) },
		"python2":   func() { b.npy("<f4", "(40L, 16L)", 4*40*16) },
		"objects":   func() { b.npy("|O", "(2, 3)", 48) },
		"torch":     func() { b.zip("archive/data.pkl", []byte("x")) },
		"bomb":      func() { b.bomb() },
		"fvecs":     func() { b.fvecs(8, 384) },
		"gguf":      func() { b.gguf("") },
		"split":     func() { b.gguf("split.count") },
		"kv":        func() { b.kv(nil, 1, 1) },
		"kv-f64":    func() { b.dtype = "F64"; b.kv(nil, 1, 1) },
		"kv-e4m3":   func() { b.dtype = "F8_E4M3"; b.kv(nil, 1, 1) },
		"weights32": func() { b.npy("<f4", "(40,)", 0); b.weights(binary.LittleEndian, 4) },
		"weights64": func() { b.npy(">f8", "(40,)", 0); b.weights(binary.BigEndian, 8) },
		"ragged":    func() { b.kv(nil, 2, 1) },
		"tokens":    func() { b.kv(nil, 1, 2) },
		"list":      func() { b.kv(map[string]string{"kv_heads": "[1, 2]"}, 1, 1) },
		"head_dim":  func() { b.kv(map[string]string{"head_dim": "70000"}, 1, 1) },
		"theta":     func() { b.kv(map[string]string{"rope_theta": "1e-20"}, 1, 1) },
		"freq":      func() { b.freq = 1e20; b.kv(nil, 1, 1) },
		"version":   func() { b.kv(map[string]string{"format": "kv-capture/99"}, 1, 1) },
	}
	make, ok := m[args[0]]
	if !ok {
		ts.Fatalf("input %s is not known", args[0])
	}
	make()
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.out, 0o644))
}

type inputBuilder struct {
	ts    *testscript.TestScript
	out   []byte
	freq  float32
	dtype string // of K and V, F16 by default
}

// file writes tensors as safetensors.
func (b *inputBuilder) file(decls []capture.Decl, meta map[string]string, data func(name string) []byte) {
	path := b.ts.MkAbs("input.tmp")
	f, err := os.Create(path)
	b.ts.Check(err)
	w, err := capture.NewWriter(f, decls, meta)
	b.ts.Check(err)
	for _, t := range w.Tensors() {
		d := data(t.Name)
		if d == nil {
			d = bytes.Repeat([]byte{0x11, 0x22, 0x33, 0x3c}, int(t.Bytes/4))
		}
		b.ts.Check(w.WriteAt(t.Name, 0, d))
	}
	b.ts.Check(w.Close())
	b.ts.Check(f.Close())
	b.out, err = os.ReadFile(path)
	b.ts.Check(err)
	b.ts.Check(os.Remove(path))
}

// rows writes safetensors of one tensor "x" of a type; bytes below 100 where step is 0.
func (b *inputBuilder) rows(dtype string, step float64, edit func([]float64)) {
	values := make([]float64, 40*16)
	for i := range values {
		values[i] = step * float64(i)
	}
	if edit != nil {
		edit(values)
	}
	var data []byte
	for i, v := range values {
		switch dtype {
		case "F64":
			data = binary.LittleEndian.AppendUint64(data, math.Float64bits(v))
		case "I64":
			data = binary.LittleEndian.AppendUint64(data, uint64(v))
		case "F16":
			data = binary.LittleEndian.AppendUint16(data, quant.F32ToF16(float32(v)))
		default:
			data = append(data, byte(i%100))
		}
	}
	b.file([]capture.Decl{{Name: "x", DTypeName: dtype, Shape: []int64{40, 16}}}, nil,
		func(string) []byte { return data })
}

func (b *inputBuilder) npy(descr, shape string, size int) {
	head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n", descr, shape)
	b.out = binary.LittleEndian.AppendUint16([]byte("\x93NUMPY\x01\x00"), uint16(len(head)))
	b.out = append(append(b.out, head...), make([]byte, size)...)
}

// fvecs writes vectors with the format of .fvecs.
func (b *inputBuilder) fvecs(rows, dim int) {
	for r := range rows {
		b.out = binary.LittleEndian.AppendUint32(b.out, uint32(dim))
		for i := range dim {
			b.out = binary.LittleEndian.AppendUint32(b.out, math.Float32bits(float32(math.Sin(float64(1+r+i*i)))/14))
		}
	}
}

// weights adds one for each of 40 tokens.
func (b *inputBuilder) weights(order binary.AppendByteOrder, size int) {
	for i := range 40 {
		v := float64(1 + i%7)
		if size == 4 {
			b.out = order.AppendUint32(b.out, math.Float32bits(float32(v)))
		} else {
			b.out = order.AppendUint64(b.out, math.Float64bits(v))
		}
	}
}

func (b *inputBuilder) zip(name string, data []byte) {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	w, err := z.Create(name)
	b.ts.Check(err)
	_, err = w.Write(data)
	b.ts.Check(err)
	b.ts.Check(z.Close())
	b.out = out.Bytes()
}

// bomb writes an .npz that says of its member that it expands to 4 GB.
func (b *inputBuilder) bomb() {
	b.npy("<f4", "(40, 16)", 4*40*16)
	b.zip("a.npy", b.out)
	at := bytes.LastIndex(b.out, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(b.out[at+24:], 0xfffffff0)
}

// gguf writes one tensor "x" of F32, and a key of 2 where it has a name.
func (b *inputBuilder) gguf(key string) {
	var m gguftest.Builder
	if key != "" {
		m.Set(key, uint32(2))
	}
	x := make([]float64, 40*16)
	for i := range x {
		x[i] = float64(i)
	}
	data, _ := gguftest.Store(gguf.TensorF32, x)
	m.Add("x", gguf.TensorF32, data, 16, 40)
	b.out = m.Bytes()
}

// kv writes a capture of two layers; the second has heads times the KV heads and tokens times the
// tokens of the first.
func (b *inputBuilder) kv(meta map[string]string, heads, tokens int64) {
	m := capture.KVMetadata(quant.Geometry{Layers: 2, Heads: 4, KVHeads: 1, HeadDim: 16, HeadDimV: 16,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 10000}}, "toy", 0)
	for k, v := range meta {
		m[k] = v
	}
	var decls []capture.Decl
	for _, l := range []struct {
		name          string
		heads, tokens int64
	}{{"layers.0.", 1, 40}, {"layers.1.", heads, 40 * tokens}} {
		for _, part := range []string{"k", "v"} {
			decls = append(decls, capture.Decl{Name: l.name + part, DTypeName: cmp.Or(b.dtype, "F16"),
				Shape: []int64{l.heads, l.tokens, 16}})
		}
	}
	if b.freq != 0 {
		decls = append(decls, capture.Decl{Name: "rope_inv_freq", DTypeName: "F32", Shape: []int64{8}})
	}
	b.file(decls, m, func(name string) []byte {
		if name != "rope_inv_freq" {
			return nil
		}
		return bytes.Repeat(binary.LittleEndian.AppendUint32(nil, math.Float32bits(b.freq)), 8)
	})
}
