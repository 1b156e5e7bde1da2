// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

// quantizedTypes are those whose weights stay quantized in memory, and where the binary16 numbers
// of a group lie.
var quantizedTypes = map[gguf.TensorType][]int{
	gguf.TensorQ4_0: {0}, gguf.TensorQ4_1: {0, 2}, gguf.TensorQ5_0: {0}, gguf.TensorQ5_1: {0, 2},
	gguf.TensorQ8_0: {0}, gguf.TensorQ2_K: {80, 82}, gguf.TensorQ3_K: {108}, gguf.TensorQ4_K: {0, 2},
	gguf.TensorQ5_K: {0, 2}, gguf.TensorQ6_K: {208}, gguf.TensorIQ4_NL: {0}, gguf.TensorIQ4_XS: {0},
	gguf.TensorMXFP4: nil,
}

// randomGroups returns the stored bytes of n values: random codes, scales that make weights of about
// a tenth.
func randomGroups(r *rand.Rand, typ gguf.TensorType, n int) []byte {
	values, size := typ.Layout()
	b := make([]byte, n/int(values)*int(size))
	for i := range b {
		b[i] = uint8(r.Uint32())
	}
	one := make([]float32, values)
	for g := 0; g < len(b); g += int(size) {
		group := b[g : g+int(size)]
		for _, at := range quantizedTypes[typ] {
			binary.LittleEndian.PutUint16(group[at:], quant.F32ToF16(1))
		}
		if typ == gguf.TensorMXFP4 {
			group[0] = 123
			continue
		}
		gguf.DecodeGroup(typ, group, one)
		var sum float64
		for _, v := range one {
			sum += float64(v) * float64(v)
		}
		for _, at := range quantizedTypes[typ] {
			s := 0.1 * (0.5 + r.Float64()) / math.Sqrt(sum/float64(values)+1e-9)
			binary.LittleEndian.PutUint16(group[at:], quant.F32ToF16(float32(s)))
		}
	}
	return b
}

// wide is a tiny model whose rows are multiples of 256, stored in a type and, as what it stands for,
// in float32.
func wide(t *testing.T, typ gguf.TensorType) (packed, plain *tiny) {
	models := [2]*tiny{}
	for i := range models {
		m := newTiny(5)
		m.hidden, m.ffn, m.headDim = 256, 512, 64
		m.Set("llama.embedding_length", uint32(m.hidden))
		m.Set("llama.feed_forward_length", uint32(m.ffn))
		models[i] = m
	}
	packed, plain = models[0], models[1]
	r := rand.New(rand.NewPCG(7, uint64(typ)))
	layout := newTiny(5)
	layout.hidden, layout.ffn, layout.headDim = 256, 512, 64
	layout.each(func(name string, rows, cols int) {
		dims := []uint64{uint64(cols), uint64(rows)}
		if rows == 1 {
			x := make([]float64, cols)
			for i := range x {
				x[i] = 1 + 0.1*r.NormFloat64()
			}
			data, _ := gguftest.Store(gguf.TensorF32, x)
			packed.Add(name, gguf.TensorF32, data, dims[:1]...)
			plain.Add(name, gguf.TensorF32, data, dims[:1]...)
			return
		}
		data := randomGroups(r, typ, rows*cols)
		values := make([]float32, rows*cols)
		require.NoError(t, gguf.Dequantize(typ, data, values))
		var floats []byte
		for _, v := range values {
			floats = binary.LittleEndian.AppendUint32(floats, math.Float32bits(v))
		}
		packed.Add(name, typ, data, dims...)
		plain.Add(name, gguf.TensorF32, floats, dims...)
	})
	return packed, plain
}

// each calls do for every tensor.
func (m *tiny) each(do func(name string, rows, cols int)) {
	m.rng = nil
	q := m.heads * m.headDim
	do("token_embd.weight", m.vocab, m.hidden)
	do("output_norm.weight", 1, m.hidden)
	for _, p := range []string{"blk.0.", "blk.1."} {
		do(p+"attn_norm.weight", 1, m.hidden)
		do(p+"ffn_norm.weight", 1, m.hidden)
		do(p+"attn_q.weight", q, m.hidden)
		do(p+"attn_k.weight", m.kvHeads*m.headDim, m.hidden)
		do(p+"attn_v.weight", m.kvHeads*m.headDim, m.hidden)
		do(p+"attn_output.weight", m.hidden, q)
		do(p+"ffn_gate.weight", m.ffn, m.hidden)
		do(p+"ffn_up.weight", m.ffn, m.hidden)
		do(p+"ffn_down.weight", m.hidden, m.ffn)
	}
}

// TestForward_QuantizedTypes: a model in any quantized type gives the logits of the float32 weights
// that its bytes stand for, bit for bit; with int8 activations, nearly.
func TestForward_QuantizedTypes(t *testing.T) {
	tokens := []int32{3, 1, 4, 1, 5, 9, 2, 6}
	for typ := range quantizedTypes {
		packed, plain := wide(t, typ)
		run := func(m *tiny, o model.Options) []float32 {
			lm := m.load(t, o)
			return forward(t, lm, tokens, newKV(t, lm, model.KVOptions{}), 0, model.ForwardOptions{Logits: model.LogitsAll})
		}
		want := run(plain, model.Options{})
		require.Equal(t, want, run(packed, model.Options{}), "%s", typ)
		var size, off float64
		for i, v := range run(packed, model.Options{Fast: true}) {
			size += float64(want[i]) * float64(want[i])
			off += float64(v-want[i]) * float64(v-want[i])
		}
		require.Less(t, off/size, 0.05*0.05, "%s: relative error of fast logits", typ)
	}
}
