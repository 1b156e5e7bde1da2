// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// GGUF returns a small model of the llama architecture with random weights and a vocabulary of bytes.
func GGUF() []byte {
	const layers, hidden, ffn, heads, kvHeads, headDim = 1, 32, 32, 2, 1, 16
	var keys bytes.Buffer
	n := 0
	key := func(name string, typ uint32, vals ...any) {
		n++
		write(&keys, name, typ)
		write(&keys, vals...)
	}
	key("general.architecture", 8, "llama")
	key("general.name", 8, "small")
	for _, k := range []struct {
		name string
		v    uint32
	}{{"block_count", layers}, {"context_length", 512}, {"embedding_length", hidden},
		{"feed_forward_length", ffn}, {"attention.head_count", heads}, {"attention.head_count_kv", kvHeads}} {
		key("llama."+k.name, 4, k.v)
	}
	key("llama.attention.layer_norm_rms_epsilon", 6, float32(1e-5))
	key("llama.rope.freq_base", 6, float32(10000))
	tokens := vocabulary()
	key("tokenizer.ggml.model", 8, "gpt2")
	key("tokenizer.ggml.pre", 8, "smollm")
	list := []any{uint32(8), uint64(len(tokens))}
	kinds := []any{uint32(5), uint64(len(tokens))}
	for i, t := range tokens {
		kind := int32(1)
		if i == 0 {
			kind = 3
		}
		list, kinds = append(list, t), append(kinds, kind)
	}
	key("tokenizer.ggml.tokens", 9, list...)
	key("tokenizer.ggml.token_type", 9, kinds...)
	key("tokenizer.ggml.merges", 9, uint32(8), uint64(1), "a b")
	key("tokenizer.ggml.eos_token_id", 4, uint32(0))

	var infos, data bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	tensors := 0
	tensor := func(name string, rows, cols int) {
		tensors++
		dims := []any{uint32(2), uint64(cols), uint64(rows)}
		if rows == 1 {
			dims = []any{uint32(1), uint64(cols)}
		}
		write(&infos, name)
		write(&infos, dims...)
		write(&infos, uint32(0), uint64(data.Len()))
		for range rows * cols {
			write(&data, float32(r.NormFloat64()/4))
		}
		data.Write(make([]byte, -data.Len()&31))
	}
	tensor("token_embd.weight", len(tokens), hidden)
	tensor("output_norm.weight", 1, hidden)
	for l := range layers {
		for _, t := range []struct {
			name       string
			rows, cols int
		}{{"attn_norm", 1, hidden}, {"ffn_norm", 1, hidden}, {"attn_q", heads * headDim, hidden},
			{"attn_k", kvHeads * headDim, hidden}, {"attn_v", kvHeads * headDim, hidden},
			{"attn_output", hidden, heads * headDim}, {"ffn_gate", ffn, hidden}, {"ffn_up", ffn, hidden},
			{"ffn_down", hidden, ffn}} {
			tensor(fmt.Sprintf("blk.%d.%s.weight", l, t.name), t.rows, t.cols)
		}
	}
	var out bytes.Buffer
	out.WriteString("GGUF")
	write(&out, uint32(3), uint64(tensors), uint64(n))
	out.Write(keys.Bytes())
	out.Write(infos.Bytes())
	out.Write(make([]byte, -out.Len()&31))
	out.Write(data.Bytes())
	return out.Bytes()
}

// vocabulary has a token that ends a text, one for every byte, and one merge.
func vocabulary() []string {
	tokens := []string{"<|end|>"}
	high := rune(256) // bytes that do not print have a letter behind the bytes
	for b := rune(0); b < 256; b++ {
		if b >= '!' && b <= '~' || b >= '\u00a1' && b <= '\u00ac' || b >= '\u00ae' {
			tokens = append(tokens, string(b))
			continue
		}
		tokens = append(tokens, string(high))
		high++
	}
	return append(tokens, "ab")
}

func write(w *bytes.Buffer, vals ...any) {
	for _, v := range vals {
		if s, ok := v.(string); ok {
			_ = binary.Write(w, binary.LittleEndian, uint64(len(s)))
			w.WriteString(s)
			continue
		}
		_ = binary.Write(w, binary.LittleEndian, v) // neither can fail: numbers, to memory
	}
}
