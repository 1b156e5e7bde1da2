// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// LogitsMode selects the tokens of a call to Forward whose logits are computed.
type LogitsMode uint8

// The modes. The output matrix is a fifth of a small model, so unused logits cost time.
const (
	LogitsLast  LogitsMode = iota // the last token
	LogitsNone                    // no token: to fill a cache
	LogitsAll                     // every token
	LogitsRange                   // tokens [From, To) of this call
)

// An Observer is called with q, k and v of a chunk in one layer, RoPE applied, before they enter
// the cache: q [n, heads, head_dim], k [n, kv_heads, head_dim], v [n, kv_heads, head_dim_v], the
// first row at position pos. The slices are valid only during the call. An error ends the pass.
type Observer func(layer, pos, n int, q, k, v []float32) error

// ForwardOptions are the options of one pass. The zero value computes the logits of the last
// token.
type ForwardOptions struct {
	Logits   LogitsMode
	From, To int // for LogitsRange: tokens of this call, half-open

	// OnLogits, if set, is called with the index and the logits, [vocab], of each token in order.
	// Forward then returns no logits, so its memory is bounded. The slice is valid only during the
	// call. An error ends the pass.
	OnLogits func(i int, logits []float32) error

	// Observer, if set, is called once per chunk and layer, in order.
	Observer Observer

	// Chunk is the number of tokens that go through the layers at once. Default 256. It changes
	// results by rounding only.
	Chunk int
}

const (
	defaultChunk   = 256
	maxChunk       = 4096
	logitsBatch    = 64      // rows of logits computed at once: 12.6 MB for a vocabulary of 49152
	maxLogitValues = 1 << 27 // of returned logits, 512 MiB
)

// Forward runs the model over tokens, the first of which has position pos. It returns the logits
// that o selects, [rows, vocab]. kv must hold the positions before pos; Forward appends to it.
//
// Errors: ErrShape for no tokens, a token outside the vocabulary, a range outside the tokens;
// ErrTooLarge for positions beyond the model's context or too many logits to return;
// those of kv, OnLogits and Observer. After an error kv may hold a part of a chunk: truncate it.
func (m *Model) Forward(tokens []int32, kv KVStore, pos int, o ForwardOptions) ([]float32, error) {
	from, to, err := m.check(tokens, pos, &o)
	if err != nil {
		return nil, err
	}
	var out []float32
	if o.OnLogits == nil && to > from {
		if (to-from)*m.Vocab > maxLogitValues {
			return nil, fmt.Errorf("kvist/model: forward: %d rows of %d logits at once, "+
				"the limit is %d values (use OnLogits): %w",
				to-from, m.Vocab, maxLogitValues, quant.ErrTooLarge)
		}
		out = make([]float32, (to-from)*m.Vocab)
	}
	s := m.scratch.Get().(*scratch)
	defer m.scratch.Put(s)
	s.size(m, min(o.Chunk, len(tokens)))
	for lo := 0; lo < len(tokens); lo += o.Chunk {
		hi := min(lo+o.Chunk, len(tokens))
		if err := m.chunk(s, tokens[lo:hi], kv, pos+lo, o.Observer); err != nil {
			return nil, fmt.Errorf("kvist/model: forward positions [%d, %d): %w", pos+lo, pos+hi, err)
		}
		a, b := max(lo, from), min(hi, to)
		if a >= b {
			continue
		}
		var dst []float32
		if out != nil {
			dst = out[(a-from)*m.Vocab : (b-from)*m.Vocab]
		}
		if err := m.logits(s, dst, a, b, lo, o.OnLogits); err != nil {
			return nil, fmt.Errorf("kvist/model: forward: logits: %w", err)
		}
	}
	return out, nil
}

func (m *Model) check(tokens []int32, pos int, o *ForwardOptions) (from, to int, err error) {
	const op = "forward"
	n := len(tokens)
	if n == 0 {
		return 0, 0, shapef(op, "no tokens")
	}
	if pos < 0 {
		return 0, 0, shapef(op, "position %d, want 0 or more", pos)
	}
	if n > m.Context || pos > m.Context-n {
		return 0, 0, fmt.Errorf("kvist/model: forward: positions [%d, %d), the model's context is %d: %w",
			pos, pos+n, m.Context, quant.ErrTooLarge)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= m.Vocab {
			return 0, 0, shapef(op, "token %d is %d, want 0 to %d", i, t, m.Vocab-1)
		}
	}
	if o.Chunk == 0 {
		o.Chunk = defaultChunk
	}
	if o.Chunk < 1 || o.Chunk > maxChunk {
		return 0, 0, shapef(op, "chunk of %d tokens, want 1 to %d", o.Chunk, maxChunk)
	}
	switch o.Logits {
	case LogitsLast:
		return n - 1, n, nil
	case LogitsNone:
		return 0, 0, nil
	case LogitsAll:
		return 0, n, nil
	case LogitsRange:
		if o.From < 0 || o.To > n || o.From > o.To {
			return 0, 0, shapef(op, "logits of [%d, %d), want within [0, %d)", o.From, o.To, n)
		}
		return o.From, o.To, nil
	}
	return 0, 0, shapef(op, "logits mode %d is not known", o.Logits)
}
