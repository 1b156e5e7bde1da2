// SPDX-License-Identifier: Apache-2.0

package model

import (
	"container/heap"
	"fmt"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/quant"
)

// Tokenizer turns text into tokens and back. It is the byte-level BPE of GPT-2: merges in order of
// rank within words of the "smollm" pre-tokenizer. It is immutable and safe for concurrent use.
//
// Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units (2016,
// arXiv 1508.07909); Radford et al., Language Models are Unsupervised Multitask Learners (2019).
type Tokenizer struct {
	text     []string // the bytes each token stands for
	bytes    [256]int32
	merges   map[uint64]merge
	special  map[string]int32
	specials []string  // longest first
	starts   [256]bool // the first bytes of special tokens
	BOS, EOS int32     // -1 if the model has none
}

type merge struct{ rank, to int32 }

const noToken = int32(-1)

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// Kinds of token in tokenizer.ggml.token_type.
const (
	tokenControl     = 3
	tokenUserDefined = 4
)

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

// NewTokenizer builds the tokenizer that a model file describes.
//
// Errors: *gguf.FileError wrapping ErrUnsupported (a tokenizer other than gpt2, a pre-tokenizer other
// than smollm) or ErrCorrupt.
func NewTokenizer(f *gguf.File) (*Tokenizer, error) {
	want := func(key, val string) error {
		v, ok := f.Meta(key)
		if s, _ := v.Str(); !ok || s != val {
			return f.KeyError(key, unsupportedf("%s, this version knows %q only", orMissing(v, ok), val))
		}
		return nil
	}
	if err := want("tokenizer.ggml.model", "gpt2"); err != nil {
		return nil, err
	}
	if err := want("tokenizer.ggml.pre", "smollm"); err != nil {
		return nil, err
	}
	t := &Tokenizer{special: map[string]int32{}}
	ids, err := t.readTokens(f)
	if err != nil {
		return nil, err
	}
	if err := t.readMerges(f, ids); err != nil {
		return nil, err
	}
	for key, dst := range map[string]*int32{"bos": &t.BOS, "eos": &t.EOS} {
		*dst = noToken
		key = "tokenizer.ggml." + key + "_token_id"
		if v, ok := f.Meta(key); ok {
			n, ok := v.Int()
			if !ok || n < 0 || n >= int64(len(t.text)) {
				return nil, f.KeyError(key, corruptf("%s, want a token below %d", v, len(t.text)))
			}
			*dst = int32(n)
		}
	}
	return t, nil
}

func orMissing(v gguf.Value, ok bool) string {
	if !ok {
		return "missing"
	}
	return v.String()
}

// readTokens fills text, bytes and special. It returns the token of each stored text.
func (t *Tokenizer) readTokens(f *gguf.File) (map[string]int32, error) {
	const key = "tokenizer.ggml.tokens"
	v, ok := f.Meta(key)
	stored, isStrings := v.Strings()
	if !isStrings || len(stored) == 0 || len(stored) > 1<<24 {
		return nil, f.KeyError(key, corruptf("%s, want 1 to 2^24 strings", orMissing(v, ok)))
	}
	var kinds []int64
	if v, ok := f.Meta("tokenizer.ggml.token_type"); ok {
		if kinds, ok = v.Ints(); !ok || len(kinds) != len(stored) {
			return nil, f.KeyError("tokenizer.ggml.token_type",
				corruptf("%s, want an integer for each of %d tokens", v, len(stored)))
		}
	}
	toRune, toByte := byteAlphabet()
	ids := make(map[string]int32, len(stored))
	t.text = make([]string, len(stored))
	for i, s := range stored {
		id := int32(i)
		if kinds != nil && (kinds[i] == tokenControl || kinds[i] == tokenUserDefined) {
			if _, twice := t.special[s]; !twice && s != "" {
				t.special[s] = id
				t.specials = append(t.specials, s)
				t.starts[s[0]] = true
			}
			t.text[i] = s
			continue
		}
		if _, twice := ids[s]; !twice {
			ids[s] = id
		}
		t.text[i] = fromAlphabet(s, toByte)
	}
	slices.SortFunc(t.specials, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	for b := range t.bytes {
		t.bytes[b] = noToken
		if id, ok := ids[string(toRune[b])]; ok {
			t.bytes[b] = id
		}
	}
	return ids, nil
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

func (t *Tokenizer) readMerges(f *gguf.File, ids map[string]int32) error {
	const key = "tokenizer.ggml.merges"
	v, ok := f.Meta(key)
	list, isStrings := v.Strings()
	if !isStrings {
		return f.KeyError(key, corruptf("%s, want an array of strings", orMissing(v, ok)))
	}
	t.merges = make(map[uint64]merge, len(list))
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
		if _, twice := t.merges[k]; !twice {
			t.merges[k] = merge{rank: int32(rank), to: to}
		}
	}
	return nil
}

// Vocab returns the number of tokens.
func (t *Tokenizer) Vocab() int { return len(t.text) }

// Encode turns text into tokens. With special, it recognises special tokens such as <|im_start|>;
// without, their characters are ordinary text. It adds no token at the start or the end.
//
// Errors: ErrRange if the vocabulary has no token for a byte of the text. The message names the
// byte. SmolLM2 lacks six control characters and the bytes of unassigned planes.
func (t *Tokenizer) Encode(text string, special bool) ([]int32, error) {
	var out []int32
	var w bpeWord
	word := func(s string) (err error) {
		out, err = t.encodeWord(out, s, &w)
		return err
	}
	for len(text) > 0 {
		n, id := len(text), noToken
		if special {
			n, id = t.nextSpecial(text)
		}
		if err := pretokenize(text[:n], word); err != nil {
			return nil, fmt.Errorf("kvist/model: encode text: %w", err)
		}
		text = text[n:]
		if id != noToken {
			out = append(out, id)
			text = text[len(t.text[id]):]
		}
	}
	return out, nil
}

// nextSpecial finds the first special token in text, the longest if several start there.
func (t *Tokenizer) nextSpecial(text string) (at int, id int32) {
	for i := range len(text) {
		if !t.starts[text[i]] {
			continue
		}
		for _, s := range t.specials {
			if strings.HasPrefix(text[i:], s) {
				return i, t.special[s]
			}
		}
	}
	return len(text), noToken
}

// Decode turns tokens into bytes. Special tokens become their names.
//
// Errors: ErrShape for a token outside the vocabulary.
func (t *Tokenizer) Decode(tokens []int32) ([]byte, error) {
	var out []byte
	for i, id := range tokens {
		if id < 0 || int(id) >= len(t.text) {
			return nil, shapef("decode tokens", "token %d is %d, want 0 to %d", i, id, len(t.text)-1)
		}
		out = append(out, t.text[id]...)
	}
	return out, nil
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

func (t *Tokenizer) encodeWord(out []int32, s string, w *bpeWord) ([]int32, error) {
	w.tok, w.prev, w.next, w.queue = w.tok[:0], w.prev[:0], w.next[:0], w.queue[:0]
	for i := range len(s) {
		id := t.bytes[s[i]]
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
		if m, ok := t.merges[pairKey(w.tok[at], w.tok[n])]; ok {
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
