// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// alphabetRune is the character of a byte in the byte-level alphabet of GPT-2, after its table:
// printable bytes as they are, the other 68 from U+0100 on.
func alphabetRune(b byte) rune {
	n := rune(256)
	for i := 0; i <= int(b); i++ {
		printable := i >= 33 && i <= 126 || i >= 161 && i <= 172 || i >= 174
		switch {
		case i == int(b) && printable:
			return rune(b)
		case i == int(b):
			return n
		case !printable:
			n++
		}
	}
	panic("unreachable")
}

var testMerges = []string{"t h", "th e", "Ġ the", "a a", "aa aa", "Ġ a", "i n", "in g", "Ġ Ġ",
	"ĠĠ Ġ", "b a", "aa b", "ba aa"}

// addVocabulary adds a tokenizer of n tokens, at least 270: 3 special ones, all bytes, the
// merges above, and fillers.
func addVocabulary(b *builder, n int) {
	tokens := []string{"<|end|>", "<|end|>er", "[X]"}
	kinds := []int32{3, 3, 4}
	for c := range 256 {
		tokens = append(tokens, string(alphabetRune(byte(c))))
	}
	for _, m := range testMerges {
		tokens = append(tokens, strings.ReplaceAll(m, " ", ""))
	}
	for i := len(tokens); i < n; i++ {
		tokens = append(tokens, strings.Repeat("z", i))
	}
	for len(kinds) < len(tokens) {
		kinds = append(kinds, 1)
	}
	b.Set("tokenizer.ggml.model", "gpt2")
	b.Set("tokenizer.ggml.pre", "smollm")
	b.Set("tokenizer.ggml.tokens", tokens)
	b.Set("tokenizer.ggml.token_type", kinds)
	b.Set("tokenizer.ggml.merges", testMerges)
	b.Set("tokenizer.ggml.eos_token_id", uint32(0))
}

func testTokenizer(t testing.TB) *model.Tokenizer {
	t.Helper()
	b := &builder{}
	addVocabulary(b, 280)
	f, err := read(b.Bytes())
	require.NoError(t, err)
	tok, err := model.NewTokenizer(f)
	require.NoError(t, err)
	return tok
}

// pieces encodes and decodes each token by itself.
func pieces(t testing.TB, tok *model.Tokenizer, text string, special bool) []string {
	t.Helper()
	ids, err := tok.Encode(text, special)
	require.NoError(t, err)
	var out []string
	for _, id := range ids {
		b, err := tok.Decode([]int32{id})
		require.NoError(t, err)
		out = append(out, string(b))
	}
	return out
}

func TestTokenizer_Merges(t *testing.T) {
	tok := testTokenizer(t)
	for text, want := range map[string][]string{
		"":               nil,
		"the":            {"the"},
		" the":           {" the"},
		"  the":          {" ", " the"},
		"theing":         {"the", "ing"},
		"aaaaa":          {"aaaa", "a"},
		"aab":            {"aab"},
		"baaaa":          {"b", "aaaa"}, // "a a" and "aa aa" rank before "b a"
		" a1 the":        {" a", "1", " the"},
		"the 12":         {"the", " ", "1", "2"},
		"    x":          {"   ", " ", "x"},
		"'the":           {"'", "t", "h", "e"}, // the contraction 't cuts the word
		"x'S":            {"x", "'", "S"},
		"\xff\xfe the":   {"\xff", "\xfe", " the"},
		"<|end|>":        {"<", "|", "e", "n", "d", "|", ">"},
		"a\n\nthe \n":    {"a", "\n", "\n", "the", " ", "\n"},
		"the\u00a0the":   {"the", "\xc2", "\xa0", "the"},
		"\u3000 the the": {"\xe3", "\x80", "\x80", " the", " the"},
	} {
		require.Equal(t, want, pieces(t, tok, text, false), "%q", text)
	}
}

func TestTokenizer_Special(t *testing.T) {
	tok := testTokenizer(t)
	require.Equal(t, []string{"the", "<|end|>", " the", "[X]", "<|end|>er", "<", "|"},
		pieces(t, tok, "the<|end|> the[X]<|end|>er<|", true))
	require.Equal(t, int32(0), tok.EOS)
	require.Equal(t, int32(-1), tok.BOS)
	for _, id := range []int32{-1, 280} {
		_, err := tok.Decode([]int32{1, id})
		require.ErrorIs(t, err, quant.ErrShape)
	}
}

// TestTokenizer_LongWords: the time for a word of a megabyte must not grow with the square of its length.
func TestTokenizer_LongWords(t *testing.T) {
	tok := testTokenizer(t)
	ids, err := tok.Encode(strings.Repeat("a", 1<<20), false)
	require.NoError(t, err)
	require.Len(t, ids, 1<<18)
	ids, err = tok.Encode(strings.Repeat("<|end|>", 1<<16), true)
	require.NoError(t, err)
	require.Len(t, ids, 1<<16)
}

// naiveBPE merges the best pair of a word until there is none, as in the definition of BPE.
func naiveBPE(word string) []string {
	var parts []string
	for i := range len(word) {
		parts = append(parts, string(alphabetRune(word[i])))
	}
	for {
		best, at := len(testMerges), -1
		for i := 0; i+1 < len(parts); i++ {
			for rank, m := range testMerges[:best] {
				if m == parts[i]+" "+parts[i+1] {
					best, at = rank, i
				}
			}
		}
		if at < 0 {
			return parts
		}
		parts[at] += parts[at+1]
		parts = append(parts[:at+1], parts[at+2:]...)
	}
}

func TestTokenizer_MatchesNaiveBPE(t *testing.T) {
	tok := testTokenizer(t)
	rapid.Check(t, func(rt *rapid.T) {
		// Letters only, so that the word stays in one piece.
		word := rapid.StringMatching(`[abgehint]{1,40}`).Draw(rt, "word")
		var want []string
		for _, p := range naiveBPE(word) {
			want = append(want, strings.ReplaceAll(p, "Ġ", " "))
		}
		require.Equal(rt, want, pieces(t, tok, word, false))
	})
}

func FuzzTokenizer(f *testing.F) {
	for _, s := range []string{"", "The capital of Germany is", "  \n\t x", "12 345", "don't",
		"\xff\x00\xc3", "<|end|>er [X]", "日本語\u3000½'s"} {
		f.Add(s, true)
	}
	tok := testTokenizer(f)
	f.Fuzz(func(t *testing.T, text string, special bool) {
		ids, err := tok.Encode(text, special)
		require.NoError(t, err) // this vocabulary has all bytes
		back, err := tok.Decode(ids)
		require.NoError(t, err)
		require.Equal(t, text, string(back))
	})
}

func TestNewTokenizer_Refuses(t *testing.T) {
	for _, c := range []struct {
		name, key string
		val       any
		want      error
		text      string
	}{
		{"model", "tokenizer.ggml.model", "bert", quant.ErrUnsupported, `"bert"`},
		{"pre", "tokenizer.ggml.pre", "tiktoken", quant.ErrUnsupported, `"tiktoken"`},
		{"pre missing", "tokenizer.ggml.pre", nil, quant.ErrUnsupported, "tokenizer.ggml.pre"},
		{"tokens", "tokenizer.ggml.tokens", uint32(3), quant.ErrCorrupt, "tokenizer.ggml.tokens"},
		{"no tokens", "tokenizer.ggml.tokens", []string{}, quant.ErrCorrupt, "tokenizer.ggml.tokens"},
		{"types", "tokenizer.ggml.token_type", []int32{1}, quant.ErrCorrupt, "token_type"},
		{"merges", "tokenizer.ggml.merges", nil, quant.ErrCorrupt, "merges"},
		{"merge", "tokenizer.ggml.merges", []string{"t h", "q q"}, quant.ErrCorrupt, `"q q"`},
		{"merge form", "tokenizer.ggml.merges", []string{"th"}, quant.ErrCorrupt, `"th"`},
		{"eos", "tokenizer.ggml.eos_token_id", uint32(280), quant.ErrCorrupt, "eos"},
		{"bos", "tokenizer.ggml.bos_token_id", "x", quant.ErrCorrupt, "bos"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &builder{}
			addVocabulary(b, 280)
			b.Drop(c.key)
			if c.val != nil {
				b.Set(c.key, c.val)
			}
			f, err := read(b.Bytes())
			require.NoError(t, err)
			_, err = model.NewTokenizer(f)
			requireTyped(t, err)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}
