// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/stretchr/testify/require"
)

// builder writes GGUF files.
type builder = gguftest.Builder

func read(data []byte) (*gguf.File, error) {
	return gguf.Read(bytes.NewReader(data), int64(len(data)), "test.gguf", gguf.Limits{})
}

// tiny is a small random llama model: its file and its weights in float64.
type tiny struct {
	gguftest.Builder
	layers, hidden, ffn, heads, kvHeads, headDim, rotary, vocab int
	theta, eps                                                  float64
	w                                                           map[string][]float64
	rng                                                         *rand.Rand
}

func newTiny(seed uint64) *tiny {
	m := &tiny{layers: 2, hidden: 64, ffn: 96, heads: 4, kvHeads: 2, headDim: 16, rotary: 16,
		vocab: 48, theta: 10000, eps: 1e-5, w: map[string][]float64{},
		rng: rand.New(rand.NewPCG(seed, 1))}
	m.Set("general.architecture", "llama")
	m.Set("general.name", "tiny")
	m.Set("llama.block_count", uint32(m.layers))
	m.Set("llama.context_length", uint32(512))
	m.Set("llama.embedding_length", uint32(m.hidden))
	m.Set("llama.feed_forward_length", uint32(m.ffn))
	m.Set("llama.attention.head_count", uint32(m.heads))
	m.Set("llama.attention.head_count_kv", uint32(m.kvHeads))
	m.Set("llama.attention.layer_norm_rms_epsilon", float32(m.eps))
	m.eps = float64(float32(m.eps))
	m.Set("llama.rope.freq_base", float32(m.theta))
	return m
}

func (m *tiny) tensor(name string, typ gguf.TensorType, rows, cols int) {
	x := make([]float64, rows*cols)
	for i := range x {
		x[i] = m.rng.NormFloat64() * 0.25
		if rows == 1 { // a norm
			x[i]++
		}
	}
	data, stored := gguftest.Store(typ, x)
	m.w[name] = stored
	dims := []uint64{uint64(cols), uint64(rows)}
	if rows == 1 {
		dims = dims[:1]
	}
	m.Add(name, typ, data, dims...)
}

// fill adds all tensors, with the types in turn.
func (m *tiny) fill(untied bool, types ...gguf.TensorType) {
	i := -1
	next := func() gguf.TensorType { i++; return types[i%len(types)] }
	m.tensor("token_embd.weight", next(), m.vocab, m.hidden)
	if untied {
		m.tensor("output.weight", next(), m.vocab, m.hidden)
	}
	m.tensor("output_norm.weight", gguf.TensorF32, 1, m.hidden)
	for l := range m.layers {
		p := fmt.Sprintf("blk.%d.", l)
		m.tensor(p+"attn_norm.weight", gguf.TensorF32, 1, m.hidden)
		m.tensor(p+"ffn_norm.weight", gguf.TensorF32, 1, m.hidden)
		m.tensor(p+"attn_q.weight", next(), m.heads*m.headDim, m.hidden)
		m.tensor(p+"attn_k.weight", next(), m.kvHeads*m.headDim, m.hidden)
		m.tensor(p+"attn_v.weight", next(), m.kvHeads*m.headDim, m.hidden)
		m.tensor(p+"attn_output.weight", next(), m.hidden, m.heads*m.headDim)
		m.tensor(p+"ffn_gate.weight", next(), m.ffn, m.hidden)
		m.tensor(p+"ffn_up.weight", next(), m.ffn, m.hidden)
		m.tensor(p+"ffn_down.weight", next(), m.hidden, m.ffn)
	}
}

func (m *tiny) load(t testing.TB, o model.Options) *model.Model {
	t.Helper()
	f, err := read(m.Bytes())
	require.NoError(t, err)
	lm, err := model.Load(f, o)
	require.NoError(t, err)
	return lm
}

// tokens returns n random tokens.
func (m *tiny) tokens(n int) []int32 {
	t := make([]int32, n)
	for i := range t {
		t[i] = int32(m.rng.IntN(m.vocab))
	}
	return t
}

// angleFunc returns the angle and the magnitude of pair i (of the interleaved layout) at pos.
type angleFunc func(pos, i int) (angle, scale float64)

func matVec(w, x []float64) []float64 {
	y := make([]float64, len(w)/len(x))
	for i := range y {
		for j, v := range x {
			y[i] += w[i*len(x)+j] * v
		}
	}
	return y
}

func (m *tiny) norm(x, w []float64) []float64 {
	var s float64
	for _, v := range x {
		s += v * v
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v / math.Sqrt(s/float64(len(x))+m.eps) * w[i]
	}
	return y
}

// forward is the naive float64 pass, a token at a time, in the layout of the file: q and k stay
// permuted and RoPE rotates components 2i and 2i+1.
func (m *tiny) forward(tokens []int32, angle angleFunc) [][]float64 {
	k, v := make([][][]float64, m.layers), make([][][]float64, m.layers)
	var logits [][]float64
	turn := func(x []float64, pos int) {
		for h := 0; h < len(x); h += m.headDim {
			for i := range m.rotary / 2 {
				a, s := angle(pos, i)
				x0, x1 := x[h+2*i], x[h+2*i+1]
				x[h+2*i] = s * (x0*math.Cos(a) - x1*math.Sin(a))
				x[h+2*i+1] = s * (x0*math.Sin(a) + x1*math.Cos(a))
			}
		}
	}
	for pos, tok := range tokens {
		x := append([]float64{}, m.w["token_embd.weight"][int(tok)*m.hidden:int(tok+1)*m.hidden]...)
		for l := range m.layers {
			w := func(name string) []float64 { return m.w[fmt.Sprintf("blk.%d.%s.weight", l, name)] }
			h := m.norm(x, w("attn_norm"))
			q, kRow := matVec(w("attn_q"), h), matVec(w("attn_k"), h)
			turn(q, pos)
			turn(kRow, pos)
			k[l], v[l] = append(k[l], kRow), append(v[l], matVec(w("attn_v"), h))
			for i, y := range matVec(w("attn_output"), m.attend(q, k[l], v[l])) {
				x[i] += y
			}
			h = m.norm(x, w("ffn_norm"))
			act, up := matVec(w("ffn_gate"), h), matVec(w("ffn_up"), h)
			for i, g := range act {
				act[i] = g / (1 + math.Exp(-g)) * up[i]
			}
			for i, y := range matVec(w("ffn_down"), act) {
				x[i] += y
			}
		}
		out := m.w["output.weight"]
		if out == nil {
			out = m.w["token_embd.weight"]
		}
		logits = append(logits, matVec(out, m.norm(x, m.w["output_norm.weight"])))
	}
	return logits
}

func (m *tiny) attend(q []float64, k, v [][]float64) []float64 {
	out := make([]float64, len(q))
	for h := range m.heads {
		kv := h / (m.heads / m.kvHeads) * m.headDim
		p := make([]float64, len(k))
		var sum float64
		for t := range k {
			for i := range m.headDim {
				p[t] += q[h*m.headDim+i] * k[t][kv+i]
			}
			p[t] = math.Exp(p[t] / math.Sqrt(float64(m.headDim)))
			sum += p[t]
		}
		for t := range v {
			for i := range m.headDim {
				out[h*m.headDim+i] += p[t] / sum * v[t][kv+i]
			}
		}
	}
	return out
}
