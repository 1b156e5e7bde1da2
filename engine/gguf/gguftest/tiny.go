// SPDX-License-Identifier: Apache-2.0

package gguftest

import (
	"fmt"
	"math/rand/v2"

	"github.com/kvist-project/kvist/engine/gguf"
)

// Shape of the model of Tiny.
const (
	TinyLayers  = 2
	TinyHeads   = 4
	TinyKVHeads = 2
	TinyHeadDim = 16
	TinyVocab   = 258
	TinyContext = 2048
)

// Tiny returns a random llama model with a tokenizer: a token for each byte, and the marks of ChatML turns.
// What it says means nothing, but it runs in no time and takes long prompts.
func Tiny(seed uint64) *Builder {
	const hidden, ffn = TinyHeads * TinyHeadDim, 96
	b, rng := &Builder{}, rand.New(rand.NewPCG(seed, 2))
	b.Set("general.architecture", "llama")
	b.Set("general.name", "tiny")
	for k, v := range map[string]int{"block_count": TinyLayers, "context_length": TinyContext,
		"embedding_length": hidden, "feed_forward_length": ffn, "attention.head_count": TinyHeads,
		"attention.head_count_kv": TinyKVHeads} {
		b.Set("llama."+k, uint32(v))
	}
	b.Set("llama.attention.layer_norm_rms_epsilon", float32(1e-5))
	b.Set("llama.rope.freq_base", float32(10000))
	tensor := func(name string, rows, cols int) {
		x := make([]float64, rows*cols)
		for i := range x {
			x[i] = rng.NormFloat64() * 0.25
			if rows == 1 { // a norm
				x[i]++
			}
		}
		data, _ := Store(gguf.TensorF32, x)
		dims := []uint64{uint64(cols), uint64(rows)}
		if rows == 1 {
			dims = dims[:1]
		}
		b.Add(name, gguf.TensorF32, data, dims...)
	}
	tensor("token_embd.weight", TinyVocab, hidden)
	tensor("output_norm.weight", 1, hidden)
	for l := range TinyLayers {
		p := fmt.Sprintf("blk.%d.", l)
		tensor(p+"attn_norm.weight", 1, hidden)
		tensor(p+"ffn_norm.weight", 1, hidden)
		tensor(p+"attn_q.weight", hidden, hidden)
		tensor(p+"attn_k.weight", TinyKVHeads*TinyHeadDim, hidden)
		tensor(p+"attn_v.weight", TinyKVHeads*TinyHeadDim, hidden)
		tensor(p+"attn_output.weight", hidden, hidden)
		tensor(p+"ffn_gate.weight", ffn, hidden)
		tensor(p+"ffn_up.weight", ffn, hidden)
		tensor(p+"ffn_down.weight", hidden, ffn)
	}
	tokens, kinds := []string{"<|im_start|>", "<|im_end|>"}, []int32{3, 3}
	for c := range 256 {
		tokens, kinds = append(tokens, string(byteRune(byte(c)))), append(kinds, 1)
	}
	b.Set("tokenizer.ggml.model", "gpt2")
	b.Set("tokenizer.ggml.pre", "smollm")
	b.Set("tokenizer.ggml.tokens", tokens)
	b.Set("tokenizer.ggml.token_type", kinds)
	b.Set("tokenizer.ggml.merges", []string{})
	b.Set("tokenizer.ggml.eos_token_id", uint32(1))
	b.Set("tokenizer.chat_template", "<|im_start|>")
	return b
}

// byteRune is the character that byte-level vocabularies write a byte as: itself if it can be printed,
// otherwise one from 256 on.
func byteRune(c byte) rune {
	n := rune(256)
	for b := range 256 {
		printable := b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae
		switch {
		case b == int(c) && printable:
			return rune(b)
		case b == int(c):
			return n
		case !printable:
			n++
		}
	}
	return 0 // not reached: c is one of them
}
