// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/gguf"
)

// Tokenizer turns text into tokens and back, by the vocabulary and the rules of a model file: byte-level
// BPE ("gpt2") or SentencePiece ("llama"). It is immutable and safe for concurrent use.
type Tokenizer struct {
	// BOS and EOS are the tokens at the start and the end of a text; -1 if the model has none.
	BOS, EOS int32
	// AddBOS says that the model expects BOS before a text. Start puts it there.
	AddBOS bool
	// Chat is the form of prompts that the model was trained on; "" if the file has none that this
	// package knows.
	Chat ChatFormat

	text  []string // the bytes each token stands for
	words wordEncoder
	user  specialSet // tokens that stand for their text wherever it occurs
	all   specialSet // those and control tokens
	ends  map[int32]bool
	strip map[int32]bool // tokens that swallow the white space after them
}

// wordEncoder encodes text without special tokens. afterSpecial says that nothing or a special token
// stands before it.
type wordEncoder interface {
	encode(out []int32, text string, afterSpecial bool) ([]int32, error)
}

const noToken = int32(-1)

// Kinds of token in tokenizer.ggml.token_type.
const (
	tokenNormal      = 1
	tokenUnknown     = 2
	tokenControl     = 3
	tokenUserDefined = 4
	tokenByte        = 6
)

// vocabulary is the list of tokens in a file.
type vocabulary struct {
	text  []string // as stored; encoders replace it by what tokens stand for
	kinds []int64  // nil: all normal
}

func (v *vocabulary) kind(i int) int64 {
	if v.kinds == nil {
		return tokenNormal
	}
	return v.kinds[i]
}

func (v *vocabulary) special(i int) bool {
	k := v.kind(i)
	return k == tokenControl || k == tokenUserDefined
}

// NewTokenizer builds the tokenizer that a model file describes.
//
// Errors: *gguf.FileError wrapping ErrUnsupported (a tokenizer other than gpt2 and llama, a
// pre-tokenizer that this package does not know) or ErrCorrupt.
func NewTokenizer(f *gguf.File) (*Tokenizer, error) {
	const key = "tokenizer.ggml.model"
	val, ok := f.Meta(key)
	model, _ := val.Str()
	if model != "gpt2" && model != "llama" {
		return nil, f.KeyError(key, unsupportedf("%s; this version knows gpt2 and llama", orMissing(val, ok)))
	}
	v, err := readVocabulary(f)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{BOS: noToken, EOS: noToken, strip: map[int32]bool{}}
	t.user, t.all = specials(v)
	if model == "gpt2" {
		e, err := newBPE(f, v)
		if err != nil {
			return nil, err
		}
		t.words, t.AddBOS = e, e.pre.bos
	} else {
		if t.words, err = newSPM(f, v); err != nil {
			return nil, err
		}
		t.AddBOS = true
		t.BOS, t.EOS = min(1, int32(len(v.text))-1), min(2, int32(len(v.text))-1) // where keys are missing
		t.stripAfterSpecial(f)
	}
	t.text = v.text
	return t, t.readRules(f)
}

// readVocabulary reads the tokens and their kinds.
func readVocabulary(f *gguf.File) (*vocabulary, error) {
	const key = "tokenizer.ggml.tokens"
	val, ok := f.Meta(key)
	stored, isStrings := val.Strings()
	if !isStrings || len(stored) == 0 || len(stored) > 1<<24 {
		return nil, f.KeyError(key, corruptf("%s, want 1 to 2^24 strings", orMissing(val, ok)))
	}
	v := &vocabulary{text: slices.Clone(stored)}
	if val, ok := f.Meta("tokenizer.ggml.token_type"); ok {
		if v.kinds, ok = val.Ints(); !ok || len(v.kinds) != len(stored) {
			return nil, f.KeyError("tokenizer.ggml.token_type",
				corruptf("%s, want an integer for each of %d tokens", val, len(stored)))
		}
	}
	return v, nil
}

// readRules reads which tokens start and end a text, and the form of prompts.
func (t *Tokenizer) readRules(f *gguf.File) error {
	for key, dst := range map[string]*int32{"bos": &t.BOS, "eos": &t.EOS, "eot": new(int32), "eom": new(int32)} {
		key = "tokenizer.ggml." + key + "_token_id"
		if v, ok := f.Meta(key); ok {
			n, ok := v.Int()
			if !ok || n < 0 || n >= int64(len(t.text)) {
				return f.KeyError(key, corruptf("%s, want a token below %d", v, len(t.text)))
			}
			*dst = int32(n)
			if dst != &t.BOS {
				t.end(int32(n))
			}
		}
	}
	if v, ok := f.Meta("tokenizer.ggml.add_bos_token"); ok {
		add, ok := v.Bool()
		if !ok {
			return f.KeyError("tokenizer.ggml.add_bos_token", corruptf("%s, want a bool", v))
		}
		t.AddBOS = add
	}
	t.AddBOS = t.AddBOS && t.BOS != noToken
	if t.EOS != noToken {
		t.end(t.EOS)
	}
	for _, s := range endNames {
		if id, ok := t.all.ids[s]; ok {
			t.end(id)
		}
	}
	if v, ok := f.Meta("tokenizer.chat_template"); ok {
		s, _ := v.Str()
		t.Chat = detectChat(s)
	}
	return nil
}

// endNames are special tokens that end an answer even where the file does not name them.
var endNames = []string{"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
	"<|end_of_text|>", "<|eom_id|>"}

func (t *Tokenizer) end(id int32) {
	if t.ends == nil {
		t.ends = map[int32]bool{}
	}
	t.ends[id] = true
}

// stripAfterSpecial makes the special tokens of Phi-3 swallow the white space after them, which its
// tokenizer does and GGUF cannot say.
func (t *Tokenizer) stripAfterSpecial(f *gguf.File) {
	v, _ := f.Meta("general.architecture")
	if s, _ := v.Str(); s != "phi3" {
		return
	}
	for s, id := range t.all.ids {
		if s != "<unk>" && s != "<s>" && s != "<|endoftext|>" {
			t.strip[id] = true
		}
	}
}

func orMissing(v gguf.Value, ok bool) string {
	if !ok {
		return "missing"
	}
	return v.String()
}

func sortedKeys[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}

// Vocab returns the number of tokens.
func (t *Tokenizer) Vocab() int { return len(t.text) }

// IsEnd reports whether a token ends an answer: EOS, and tokens such as <|im_end|>.
func (t *Tokenizer) IsEnd(token int32) bool { return t.ends[token] }

// Encode turns text into tokens. With special, it recognises control tokens such as <|im_start|>;
// without, their characters are ordinary text. Tokens that the vocabulary marks as user-defined, such as
// runs of newlines in Gemma, are recognised in both cases. It adds no token at the start or the end.
//
// Errors: ErrRange if the vocabulary has no token for a byte of the text. The message names the
// byte. SmolLM2 lacks six control characters and the bytes of unassigned planes.
func (t *Tokenizer) Encode(text string, special bool) ([]int32, error) {
	return t.encode(nil, text, special, true)
}

// Continue is Encode for text that goes on after other text: vocabularies of SentencePiece that put a
// space before a text do not put one before this.
//
// Errors: those of Encode.
func (t *Tokenizer) Continue(text string, special bool) ([]int32, error) {
	return t.encode(nil, text, special, false)
}

// Start is Encode for text at the start of a sequence: BOS stands before it where AddBOS says so.
//
// Errors: those of Encode.
func (t *Tokenizer) Start(text string, special bool) ([]int32, error) {
	var out []int32
	if t.AddBOS {
		out = append(out, t.BOS)
	}
	return t.encode(out, text, special, true)
}

// encode appends the tokens of text to out. afterSpecial says that nothing or a special token stands
// before it.
func (t *Tokenizer) encode(out []int32, text string, special, afterSpecial bool) (_ []int32, err error) {
	set := &t.user
	if special {
		set = &t.all
	}
	for len(text) > 0 {
		n, id := set.next(text)
		if n > 0 {
			if out, err = t.words.encode(out, text[:n], afterSpecial); err != nil {
				return nil, fmt.Errorf("kvist/model: encode text: %w", err)
			}
			afterSpecial = false
		}
		text = text[n:]
		if id == noToken {
			continue
		}
		out = append(out, id)
		text = text[len(t.text[id]):]
		if t.strip[id] {
			text = strings.TrimLeft(text, " \t\n\v\f\r")
		}
		afterSpecial = true
	}
	return out, nil
}

// Decode turns tokens into bytes. Special tokens become their names. SentencePiece vocabularies of the
// llama family put a space before a text, which Decode does not take off.
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

// specialSet finds special tokens in text.
type specialSet struct {
	ids     map[string]int32
	lengths [256][]int // of the tokens that start with a byte, longest first
}

// specials returns the user-defined tokens of a vocabulary, and those with the control tokens.
func specials(v *vocabulary) (user, all specialSet) {
	user.ids, all.ids = map[string]int32{}, map[string]int32{}
	for i, s := range v.text {
		if !v.special(i) || s == "" {
			continue
		}
		all.add(s, int32(i))
		if v.kind(i) == tokenUserDefined {
			user.add(s, int32(i))
		}
	}
	return user, all
}

// add adds a token; of several with one text, the first counts.
func (s *specialSet) add(text string, id int32) {
	if _, twice := s.ids[text]; twice {
		return
	}
	s.ids[text] = id
	l := &s.lengths[text[0]]
	if i, found := slices.BinarySearchFunc(*l, len(text), func(a, b int) int { return b - a }); !found {
		*l = slices.Insert(*l, i, len(text))
	}
}

// next finds the first special token in text, the longest if several start there.
func (s *specialSet) next(text string) (at int, id int32) {
	for i := range len(text) {
		for _, n := range s.lengths[text[i]] {
			if n > len(text)-i {
				continue
			}
			if id, ok := s.ids[text[i:i+n]]; ok {
				return i, id
			}
		}
	}
	return len(text), noToken
}
