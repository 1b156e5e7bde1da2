// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// Part is what a batch adds to one sequence: its next tokens, the first of them at position Pos.
type Part struct {
	Tokens []int32
	Pos    int
	Logits bool // compute the logits of the last token
}

// BatchKV holds the K and V of the sequences of a batch, in the order of its parts. An engine.Step is one.
// For every layer, in order, ForwardBatch calls Append and then Attend.
type BatchKV interface {
	// Append adds the rows of the tokens of all parts: k [tokens, kv_heads, head_dim] with RoPE applied,
	// v [tokens, kv_heads, head_dim_v]. It must not keep the slices.
	Append(layer int, k, v []float32) error
	// Attend computes the attention of all tokens, each within its own sequence: q [tokens, heads,
	// head_dim], out [tokens, heads, head_dim_v]; see KVStore. out does not overlap q.
	Attend(layer int, q, out []float32) error
}

// checkBatch checks the parts of a batch and counts their tokens.
func checkBatch(m *Model, parts []Part) (tokens int, err error) {
	const op = "forward batch"
	if len(parts) == 0 {
		return 0, shapef(op, "no parts")
	}
	for i, p := range parts {
		switch n := len(p.Tokens); {
		case n == 0:
			return 0, shapef(op, "part %d has no tokens", i)
		case n > maxChunk || tokens+n > maxChunk:
			return 0, shapef(op, "parts up to %d have %d tokens, want at most %d", i, tokens+n, maxChunk)
		case p.Pos < 0:
			return 0, shapef(op, "part %d: position %d, want 0 or more", i, p.Pos)
		case n > m.Context || p.Pos > m.Context-n:
			return 0, fmt.Errorf("kvist/model: forward batch: part %d: positions [%d, %d), the model's context is %d: %w",
				i, p.Pos, p.Pos+n, m.Context, quant.ErrTooLarge)
		}
		for j, t := range p.Tokens {
			if t < 0 || int(t) >= m.Vocab {
				return 0, shapef(op, "token %d of part %d is %d, want 0 to %d", j, i, t, m.Vocab-1)
			}
		}
		tokens += len(p.Tokens)
	}
	return tokens, nil
}

// batchStore is a BatchKV as the store of one pass. A batch knows positions itself.
type batchStore struct{ kv BatchKV }

func (b batchStore) Append(layer, _ int, k, v []float32, _ int) error {
	return b.kv.Append(layer, k, v)
}

func (b batchStore) Attend(layer, _ int, q []float32, _ int, out []float32) error {
	return b.kv.Attend(layer, q, out)
}
