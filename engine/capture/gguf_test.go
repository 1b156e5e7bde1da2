// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/quant"
)

// groupsOf stores 0, 1, 2, ... as Q8_0 with a separate scale for each group of 32.
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

func smallModel() (*gguftest.Builder, []float32) {
	m := &gguftest.Builder{}
	m.Set("general.alignment", uint32(32))
	data, values := groupsOf(6)
	m.Add("blk.0.w", gguf.TensorQ8_0, data, 64, 3)
	var norm, embed []byte
	for i := range 64 {
		norm = binary.LittleEndian.AppendUint32(norm, math.Float32bits(float32(i)))
		embed = binary.LittleEndian.AppendUint16(embed, quant.F32ToF16(float32(i)))
	}
	m.Add("blk.0.norm", gguf.TensorF32, norm, 64)
	m.Add("embed", gguf.TensorF16, embed, 4, 8, 2)
	return m, values
}

func TestGGUF_Tensors(t *testing.T) {
	m, values := smallModel()
	s := mustOpen(t, m.Bytes())
	equal(t, "format", s.Info().Format, "gguf")
	equal(t, "tensors of rows", len(s.ActTensors()), 2)
	equal(t, "side tensors", len(s.SideTensors()), 1)
	checkCounting(t, s, "embed")
	e, err := capture.RowsOf(s, "embed")
	noError(t, err)
	equal(t, "type", e.DType, quant.Float16)
	if len(e.Shape) != 3 || e.Shape[0] != 2 || e.Shape[1] != 8 || e.Shape[2] != 4 {
		t.Fatalf("shape %v, want [2 8 4]", e.Shape)
	}
	a, err := capture.RowsOf(s, "blk.0.w")
	noError(t, err)
	equal(t, "type of groups", a.DType, quant.Float32)
	equal(t, "rows", a.Rows, 3)
	info, _ := s.Lookup("blk.0.w")
	equal(t, "stored", info.Stored, "Q8_0")
	for first := range 3 {
		got := make([]float32, (3-first)*64)
		noError(t, a.Tensor.ReadF32(0, first, 3-first, got))
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
	m := &gguftest.Builder{}
	m.Add("blk.0.w", gguf.TensorType(16), make([]byte, 66), 256)
	_, err := openBytes(m.Bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, `tensor "blk.0.w": not supported: its type is IQ2_XXS; F32`)
	m, _ = smallModel()
	m.Set("split.count", uint32(3))
	_, err = openBytes(m.Bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "part 1 of a model split into 3 files; llama-gguf-split --merge")
	m = &gguftest.Builder{}
	m.Add("__metadata__", gguf.TensorF32, make([]byte, 8), 2)
	_, err = openBytes(m.Bytes(), capture.Limits{})
	wantFormatError(t, err, quant.ErrUnsupported, "a tensor named")
	m, _ = smallModel()
	_, err = openBytes(m.Bytes(), capture.Limits{Tensors: 2})
	wantFormatError(t, err, quant.ErrTooLarge, "3 tensors, the limit is 2")
	for n := range m.Bytes() {
		_, err := openBytes(m.Bytes()[:n], capture.Limits{})
		wantFormatError(t, err, quant.ErrCorrupt)
	}
}

func TestGGUF_Flipped(t *testing.T) {
	m, _ := smallModel()
	b := m.Bytes()
	for at := range b {
		for _, x := range []byte{0x01, 0x80, 0xff} {
			b[at] ^= x
			readOdd(t, b, capture.Limits{})
			b[at] ^= x
		}
	}
}
