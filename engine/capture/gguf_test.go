// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// model writes a GGUF of version 3.
type model struct {
	keys, tensors uint64
	list, data    bytes.Buffer
	table         bytes.Buffer
}

func (m *model) text(w *bytes.Buffer, s string) {
	_ = binary.Write(w, binary.LittleEndian, uint64(len(s)))
	w.WriteString(s)
}

func (m *model) put(w *bytes.Buffer, list ...any) {
	for _, v := range list {
		_ = binary.Write(w, binary.LittleEndian, v)
	}
}

func (m *model) u32(key string, v uint32) {
	m.keys++
	m.text(&m.list, key)
	m.put(&m.list, uint32(4), v)
}

func (m *model) add(name string, typ uint32, data []byte, dims ...uint64) {
	m.tensors++
	m.text(&m.table, name)
	m.put(&m.table, uint32(len(dims)), dims, typ, uint64(m.data.Len()))
	m.data.Write(data)
	m.data.Write(make([]byte, -m.data.Len()&31))
}

func (m *model) bytes() []byte {
	var w bytes.Buffer
	w.WriteString("GGUF")
	m.put(&w, uint32(3), m.tensors, m.keys)
	w.Write(m.list.Bytes())
	w.Write(m.table.Bytes())
	w.Write(make([]byte, -w.Len()&31))
	w.Write(m.data.Bytes())
	return w.Bytes()
}

// groupsOf stores 0, 1, 2, ... as Q8_0 with a scale of its own for each group of 32.
func groupsOf(n int) (data []byte, values []float32) {
	for g := range n {
		scale := quant.F32ToF16(float32(g+1) / 4)
		data = binary.LittleEndian.AppendUint16(data, scale)
		for i := range 32 {
			data = append(data, byte(int8(i-16)))
			values = append(values, float32(g+1)/4*float32(i-16))
		}
	}
	return data, values
}

func smallModel() (*model, []float32) {
	m := &model{}
	m.u32("general.alignment", 32)
	data, values := groupsOf(6)
	m.add("blk.0.w", 8, data, 64, 3)
	var norm, embed []byte
	for i := range 64 {
		norm = binary.LittleEndian.AppendUint32(norm, math.Float32bits(float32(i)))
		embed = binary.LittleEndian.AppendUint16(embed, quant.F32ToF16(float32(i)))
	}
	m.add("blk.0.norm", 0, norm, 64)
	m.add("embed", 1, embed, 4, 8, 2)
	return m, values
}

func TestGGUF_Tensors(t *testing.T) {
	m, values := smallModel()
	s := mustOpen(t, m.bytes())
	equal(t, "format", s.Format(), capture.GGUF)
	equal(t, "name of the format", s.Format().String(), "gguf")
	equal(t, "tensors of rows", len(s.ActTensors()), 2)
	equal(t, "side tensors", len(s.SideTensors()), 1)
	checkCounting(t, s, "embed")
	e, err := s.ActTensor("embed")
	noError(t, err)
	equal(t, "type", e.DType, quant.Float16)
	if len(e.Shape) != 3 || e.Shape[0] != 2 || e.Shape[1] != 8 || e.Shape[2] != 4 {
		t.Fatalf("shape %v, want [2 8 4]", e.Shape)
	}
	a, err := s.ActTensor("blk.0.w")
	noError(t, err)
	equal(t, "type of groups", a.DType, quant.Float32)
	equal(t, "rows", a.Rows, 3)
	info, _ := s.Lookup("blk.0.w")
	equal(t, "stored", info.Stored, "Q8_0")
	for first := range 3 {
		got := make([]float32, (3-first)*64)
		noError(t, s.ReadRowsF32(a.Tensor, 0, first, 3-first, got))
		for i, v := range got {
			equal(t, "value", v, values[first*64+i])
		}
	}
	b := make([]byte, 7) // from within a value, across a group
	noError(t, s.ReadAt("blk.0.w", 31*4+2, b))
	want := binary.LittleEndian.AppendUint32(nil, math.Float32bits(values[31]))
	want = binary.LittleEndian.AppendUint32(want, math.Float32bits(values[32]))
	want = binary.LittleEndian.AppendUint32(want, math.Float32bits(values[33]))
	equal(t, "raw", string(b), string(want[2:9]))
}

func TestGGUF_Refused(t *testing.T) {
	m := &model{}
	m.add("blk.0.w", 12, make([]byte, 144), 256)
	_, err := openBytes(m.bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, `tensor "blk.0.w": not supported: its type is Q4_K; F32`)
	m, _ = smallModel()
	m.u32("split.count", 3)
	_, err = openBytes(m.bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "part 1 of a model split into 3 files; llama-gguf-split --merge")
	m = &model{}
	m.add("__metadata__", 0, make([]byte, 8), 2)
	_, err = openBytes(m.bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "a tensor named")
	m, _ = smallModel()
	_, err = openBytes(m.bytes(), capture.Limits{Tensors: 2})
	wantFormatError(t, err, quant.ErrTooLarge, "3 tensors, the limit is 2")
	for n := range m.bytes() {
		_, err := openBytes(m.bytes()[:n], capture.Limits{})
		wantFormatError(t, err, quant.ErrCorrupt)
	}
}

func TestGGUF_Flipped(t *testing.T) {
	m, _ := smallModel()
	b := m.bytes()
	for at := range b {
		for _, x := range []byte{0x01, 0x80, 0xff} {
			b[at] ^= x
			readOdd(t, b, capture.Limits{})
			b[at] ^= x
		}
	}
}
