// SPDX-License-Identifier: Apache-2.0

// Package gguftest writes GGUF files, for tests.
package gguftest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Builder writes GGUF files: version 3 and alignment 32 unless told otherwise.
type Builder struct {
	Version uint32
	Align   int
	Keys    []Key
	tensors []rawTensor
}

// Key is a key of metadata and its value, of a Go type that GGUF has.
type Key struct {
	Name  string
	Value any
}

type rawTensor struct {
	name string
	typ  gguf.TensorType
	dims []uint64
	data []byte
}

// Set sets a key of metadata.
func (b *Builder) Set(key string, val any) {
	for i := range b.Keys {
		if b.Keys[i].Name == key {
			b.Keys[i].Value = val
			return
		}
	}
	b.Keys = append(b.Keys, Key{key, val})
}

// Drop removes a key.
func (b *Builder) Drop(key string) {
	for i := range b.Keys {
		if b.Keys[i].Name == key {
			b.Keys = append(b.Keys[:i], b.Keys[i+1:]...)
			return
		}
	}
}

// Add adds a tensor; the first dim is the row.
func (b *Builder) Add(name string, typ gguf.TensorType, data []byte, dims ...uint64) {
	b.tensors = append(b.tensors, rawTensor{name, typ, dims, data})
}

// Put writes values as GGUF does: little-endian, strings behind their length.
func Put(w *bytes.Buffer, vals ...any) {
	for _, v := range vals {
		switch v := v.(type) {
		case string:
			_ = binary.Write(w, binary.LittleEndian, uint64(len(v)))
			w.WriteString(v)
		default:
			_ = binary.Write(w, binary.LittleEndian, v)
		}
	}
}

func putValue(w *bytes.Buffer, val any) {
	switch v := val.(type) {
	case uint8:
		Put(w, uint32(0), v)
	case int8:
		Put(w, uint32(1), v)
	case uint16:
		Put(w, uint32(2), v)
	case int16:
		Put(w, uint32(3), v)
	case uint32:
		Put(w, uint32(4), v)
	case int32:
		Put(w, uint32(5), v)
	case float32:
		Put(w, uint32(6), v)
	case bool:
		Put(w, uint32(7), v)
	case string:
		Put(w, uint32(8), v)
	case uint64:
		Put(w, uint32(10), v)
	case int64:
		Put(w, uint32(11), v)
	case float64:
		Put(w, uint32(12), v)
	case []string:
		Put(w, uint32(9), uint32(8), uint64(len(v)))
		for _, s := range v {
			Put(w, s)
		}
	case []int32:
		Put(w, uint32(9), uint32(5), uint64(len(v)), v)
	case []float32:
		Put(w, uint32(9), uint32(6), uint64(len(v)), v)
	case []bool:
		Put(w, uint32(9), uint32(7), uint64(len(v)), v)
	case []any: // array of arrays of int32
		Put(w, uint32(9), uint32(9), uint64(len(v)))
		for _, e := range v {
			var inner bytes.Buffer
			putValue(&inner, e)
			w.Write(inner.Bytes()[4:])
		}
	default:
		panic(fmt.Sprintf("no GGUF type for %T", val))
	}
}

// Bytes returns the file.
func (b *Builder) Bytes() []byte {
	var w bytes.Buffer
	version, align := b.Version, b.Align
	if version == 0 {
		version = 3
	}
	if align == 0 {
		align = 32
	}
	w.WriteString("GGUF")
	Put(&w, version, uint64(len(b.tensors)), uint64(len(b.Keys)))
	for _, k := range b.Keys {
		Put(&w, k.Name)
		putValue(&w, k.Value)
	}
	off := 0
	for _, t := range b.tensors {
		Put(&w, t.name, uint32(len(t.dims)), t.dims, uint32(t.typ), uint64(off))
		off += (len(t.data) + align - 1) / align * align
	}
	for _, t := range b.tensors {
		w.Write(make([]byte, (align-w.Len()%align)%align))
		w.Write(t.data)
	}
	return w.Bytes()
}

// Store encodes x in a type and returns the bytes and the values that they stand for. The
// scales are powers of two so that the values follow without doubt.
func Store(typ gguf.TensorType, x []float64) (data []byte, stored []float64) {
	var w bytes.Buffer
	group := 32
	if typ == gguf.TensorF32 || typ == gguf.TensorF16 || typ == gguf.TensorBF16 {
		group = 1
	}
	clamp := func(v, lo, hi float64) float64 { return math.Min(hi, math.Max(lo, math.Round(v))) }
	for ; len(x) > 0; x = x[group:] {
		const s8, s4, low = 1.0 / 256, 1.0 / 16, -0.5
		var codes [32]uint8
		switch typ {
		case gguf.TensorF32:
			Put(&w, float32(x[0]))
			stored = append(stored, float64(float32(x[0])))
		case gguf.TensorF16:
			h := quant.F32ToF16(float32(x[0]))
			Put(&w, h)
			stored = append(stored, float64(quant.F16ToF32(h)))
		case gguf.TensorBF16:
			h := quant.F32ToBF16(float32(x[0]))
			Put(&w, h)
			stored = append(stored, float64(quant.BF16ToF32(h)))
		case gguf.TensorQ8_0:
			Put(&w, quant.F32ToF16(s8))
			for _, v := range x[:32] {
				c := clamp(v/s8, -127, 127)
				Put(&w, int8(c))
				stored = append(stored, c*s8)
			}
		case gguf.TensorQ4_0, gguf.TensorQ4_1:
			Put(&w, quant.F32ToF16(s4))
			lo := -8 * s4
			if typ == gguf.TensorQ4_1 {
				lo = low
				Put(&w, quant.F32ToF16(low))
			}
			for i, v := range x[:32] {
				c := clamp((v-lo)/s4, 0, 15)
				codes[i] = uint8(c)
				stored = append(stored, lo+c*s4)
			}
			for i := range 16 {
				Put(&w, codes[i]|codes[i+16]<<4)
			}
		}
	}
	return w.Bytes(), stored
}
