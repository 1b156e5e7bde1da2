// SPDX-License-Identifier: Apache-2.0

package model

import (
	"container/heap"
	"fmt"
	"strings"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// bpe is the byte-level BPE of GPT-2: merges in order of rank within the words of a pre-tokenizer.
//
// Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units (2016,
// arXiv 1508.07909); Radford et al., Language Models are Unsupervised Multitask Learners (2019).
type bpe struct {
	pre    pretokenizer
	bytes  [256]int32
	merges map[uint64]merge
	whole  map[string]int32 // words that are tokens whatever the merges; nil: merges decide
}

type merge struct{ rank, to int32 }

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// byteAlphabet returns the character for each byte in stored tokens: a printable character for
// itself, U+0100 and up in order for the others.
func byteAlphabet() (toRune [256]rune, toByte map[rune]byte) {
	toByte = make(map[rune]byte, 256)
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae) {
			r = next
			next++
		}
		toRune[b], toByte[r] = r, byte(b)
	}
	return toRune, toByte
}

// newBPE reads the merges and turns the stored texts of v into bytes.
func newBPE(f *gguf.File, v *vocabulary) (*bpe, error) {
	const key = "tokenizer.ggml.pre"
	val, ok := f.Meta(key)
	name, _ := val.Str()
	pre, known := pretokenizers[name]
	if !known {
		return nil, f.KeyError(key, unsupportedf("%s; this version knows %s", orMissing(val, ok),
			sortedKeys(pretokenizers)))
	}
	e := &bpe{pre: pre}
	toRune, toByte := byteAlphabet()
	ids := make(map[string]int32, len(v.text))
	for i, s := range v.text {
		if v.special(i) {
			continue
		}
		if _, twice := ids[s]; !twice {
			ids[s] = int32(i)
		}
		v.text[i] = fromAlphabet(s, toByte)
	}
	for b := range e.bytes {
		e.bytes[b] = noToken
		if id, ok := ids[string(toRune[b])]; ok {
			e.bytes[b] = id
		}
	}
	if pre.wholeWords {
		e.whole = make(map[string]int32, len(ids))
		for s, id := range ids {
			e.whole[fromAlphabet(s, toByte)] = id
		}
	}
	return e, e.readMerges(f, ids)
}

// fromAlphabet returns the bytes of a stored token. A text outside the byte alphabet is returned as
// it is: such tokens were added by hand.
func fromAlphabet(s string, toByte map[rune]byte) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		c, ok := toByte[r]
		if !ok {
			return s
		}
		b = append(b, c)
	}
	return string(b)
}

func (e *bpe) readMerges(f *gguf.File, ids map[string]int32) error {
	const key = "tokenizer.ggml.merges"
	v, ok := f.Meta(key)
	list, isStrings := v.Strings()
	if !isStrings {
		return f.KeyError(key, corruptf("%s, want an array of strings", orMissing(v, ok)))
	}
	e.merges = make(map[uint64]merge, len(list))
	for rank, m := range list {
		// In this alphabet no part starts with a space.
		l, r, ok := strings.Cut(m, " ")
		a, okA := ids[l]
		b, okB := ids[r]
		to, okTo := ids[l+r]
		if !ok || !okA || !okB || !okTo {
			return f.KeyError(key, corruptf("merge %d, %q, is not two tokens that make a third", rank, m))
		}
		k := pairKey(a, b)
		if _, twice := e.merges[k]; !twice {
			e.merges[k] = merge{rank: int32(rank), to: to}
		}
	}
	return nil
}

// encode implements wordEncoder.
func (e *bpe) encode(out []int32, text string, _ bool) ([]int32, error) {
	var w bpeWord
	err := e.pre.split(text, func(s string) (err error) {
		if id, ok := e.whole[s]; ok {
			out = append(out, id)
			return nil
		}
		out, err = e.encodeWord(out, s, &w)
		return err
	})
	return out, err
}

// bpeWord is the working state of one word: a linked list of tokens over its bytes and a heap of
// the possible merges. It takes n log n steps, so a hostile word of a megabyte takes about as
// long as a megabyte of text.
type bpeWord struct {
	tok        []int32 // noToken if merged into another
	prev, next []int32
	queue      mergeQueue
}

type candidate struct {
	rank, at, left, right, to int32
}

type mergeQueue []candidate

func (q mergeQueue) Len() int { return len(q) }
func (q mergeQueue) Less(i, j int) bool {
	if q[i].rank != q[j].rank {
		return q[i].rank < q[j].rank
	}
	return q[i].at < q[j].at
}
func (q mergeQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *mergeQueue) Push(x any)   { *q = append(*q, x.(candidate)) }
func (q *mergeQueue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	*q = (*q)[:last]
	return c
}

func (e *bpe) encodeWord(out []int32, s string, w *bpeWord) ([]int32, error) {
	w.tok, w.prev, w.next, w.queue = w.tok[:0], w.prev[:0], w.next[:0], w.queue[:0]
	for i := range len(s) {
		id := e.bytes[s[i]]
		if id == noToken {
			return nil, fmt.Errorf("byte 0x%02x of %.32q has no token in this vocabulary: %w",
				s[i], s, quant.ErrRange)
		}
		w.tok = append(w.tok, id)
		w.prev = append(w.prev, int32(i)-1)
		w.next = append(w.next, int32(i)+1)
	}
	push := func(at int32) {
		n := w.next[at]
		if int(n) >= len(w.tok) {
			return
		}
		if m, ok := e.merges[pairKey(w.tok[at], w.tok[n])]; ok {
			heap.Push(&w.queue, candidate{m.rank, at, w.tok[at], w.tok[n], m.to})
		}
	}
	for i := range len(w.tok) - 1 {
		push(int32(i))
	}
	for len(w.queue) > 0 {
		c := heap.Pop(&w.queue).(candidate)
		n := w.next[c.at]
		// A candidate is stale if one of its sides was merged since.
		if w.tok[c.at] != c.left || int(n) >= len(w.tok) || w.tok[n] != c.right {
			continue
		}
		w.tok[c.at], w.tok[n] = c.to, noToken
		w.next[c.at] = w.next[n]
		if after := w.next[c.at]; int(after) < len(w.tok) {
			w.prev[after] = c.at
		}
		push(c.at)
		if p := w.prev[c.at]; p >= 0 {
			push(p)
		}
	}
	for i := int32(0); int(i) < len(w.tok); i = w.next[i] {
		out = append(out, w.tok[i])
	}
	return out, nil
}
