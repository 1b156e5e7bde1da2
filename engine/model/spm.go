// SPDX-License-Identifier: Apache-2.0

package model

import (
	"container/heap"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// spm is the tokenizer of SentencePiece as llama.cpp runs it for BPE and unigram vocabularies alike:
// characters merge, the pair of the highest score first, as long as a pair is a token. Characters that
// are left over become bytes. Spaces are stored as U+2581.
//
// Source: Kudo and Richardson, SentencePiece (2018, arXiv 1808.06226).
type spm struct {
	ids    map[string]int32
	rank   []int32 // [tokens], 0 for the highest score
	bytes  [256]int32
	prefix bool // a space goes before text that follows no other
}

const spaceMark = "\u2581"

// newSPM reads the scores and turns the stored texts of v into bytes.
func newSPM(f *gguf.File, v *vocabulary) (*spm, error) {
	s := &spm{ids: make(map[string]int32, len(v.text)), prefix: true}
	if val, ok := f.Meta("tokenizer.ggml.add_space_prefix"); ok {
		if s.prefix, ok = val.Bool(); !ok {
			return nil, f.KeyError("tokenizer.ggml.add_space_prefix", corruptf("%s, want a bool", val))
		}
	}
	if err := s.readRanks(f, len(v.text)); err != nil {
		return nil, err
	}
	for b := range s.bytes {
		s.bytes[b] = noToken
	}
	for i, text := range v.text {
		switch v.kind(i) {
		case tokenByte:
			var b byte
			if _, err := fmt.Sscanf(text, "<0x%02X>", &b); err != nil || len(text) != 6 {
				return nil, f.KeyError("tokenizer.ggml.tokens", corruptf("token %d is %q, want a byte as <0x0A>", i, text))
			}
			s.bytes[b], v.text[i] = int32(i), string([]byte{b})
		case tokenControl, tokenUnknown, tokenUserDefined:
		default:
			if _, twice := s.ids[text]; !twice {
				s.ids[text] = int32(i)
			}
			v.text[i] = strings.ReplaceAll(text, spaceMark, " ")
		}
	}
	return s, nil
}

// readRanks turns scores into ranks, equal scores into equal ranks.
func (s *spm) readRanks(f *gguf.File, tokens int) error {
	const key = "tokenizer.ggml.scores"
	val, ok := f.Meta(key)
	scores, isFloats := val.Floats()
	if !isFloats || len(scores) != tokens {
		return f.KeyError(key, corruptf("%s, want a number for each of %d tokens", orMissing(val, ok), tokens))
	}
	order := make([]int32, tokens)
	for i := range order {
		order[i] = int32(i)
		if math.IsNaN(scores[i]) {
			return f.KeyError(key, corruptf("score %d is not a number", i))
		}
	}
	slices.SortFunc(order, func(a, b int32) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	s.rank = make([]int32, tokens)
	for i := 1; i < tokens; i++ {
		s.rank[order[i]] = s.rank[order[i-1]]
		if scores[order[i]] != scores[order[i-1]] {
			s.rank[order[i]]++
		}
	}
	return nil
}

// spmText is a text that is being merged: a linked list of symbols, each a piece of the text.
type spmText struct {
	s          *spm
	text       string
	at, n      []int32 // where a symbol starts, and its bytes; 0 if merged into another
	prev, next []int32
	queue      mergeQueue
}

// encode implements wordEncoder.
func (s *spm) encode(out []int32, text string, afterSpecial bool) ([]int32, error) {
	if s.prefix && afterSpecial {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", spaceMark)
	if len(text) > math.MaxInt32 {
		return nil, fmt.Errorf("a text of %d bytes, the limit is %d: %w", len(text), math.MaxInt32,
			quant.ErrTooLarge)
	}
	w := &spmText{s: s, text: text}
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		w.prev = append(w.prev, int32(len(w.at))-1)
		w.next = append(w.next, int32(len(w.at))+1)
		w.at, w.n = append(w.at, int32(i)), append(w.n, int32(n))
		i += n
	}
	for i := range w.at {
		w.push(int32(i))
	}
	w.merge()
	return w.tokens(out)
}

// push queues the merge of a symbol with the next one, if they make a token.
func (w *spmText) push(i int32) {
	next := w.next[i]
	if int(next) >= len(w.at) {
		return
	}
	if id, ok := w.s.ids[w.text[w.at[i]:w.at[next]+w.n[next]]]; ok {
		heap.Push(&w.queue, candidate{w.s.rank[id], i, w.n[i], w.n[next], id})
	}
}

func (w *spmText) merge() {
	for len(w.queue) > 0 {
		c := heap.Pop(&w.queue).(candidate)
		n := w.next[c.at]
		// A candidate is stale if one of its sides was merged since.
		if w.n[c.at] != c.left || int(n) >= len(w.at) || w.n[n] != c.right {
			continue
		}
		w.n[c.at], w.n[n] = c.left+c.right, 0
		w.next[c.at] = w.next[n]
		if after := w.next[c.at]; int(after) < len(w.at) {
			w.prev[after] = c.at
		}
		w.push(c.at)
		if p := w.prev[c.at]; p >= 0 {
			w.push(p)
		}
	}
}

// tokens appends the token of each symbol, or those of its bytes.
func (w *spmText) tokens(out []int32) ([]int32, error) {
	for i := int32(0); int(i) < len(w.at); i = w.next[i] {
		piece := w.text[w.at[i] : w.at[i]+w.n[i]]
		if id, ok := w.s.ids[piece]; ok {
			out = append(out, id)
			continue
		}
		for j := range len(piece) {
			id := w.s.bytes[piece[j]]
			if id == noToken {
				return nil, fmt.Errorf("byte 0x%02x of %.32q has no token in this vocabulary: %w", piece[j], piece,
					quant.ErrRange)
			}
			out = append(out, id)
		}
	}
	return out, nil
}
