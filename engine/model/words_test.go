// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
	"github.com/stretchr/testify/require"
)

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, v))
}

// wordTokenizer has a token for each byte, and merges that make each word one token.
func wordTokenizer(t testing.TB, pre string, words []string) *model.Tokenizer {
	t.Helper()
	b := &builder{}
	var tokens, merges []string
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			tokens = append(tokens, s)
		}
	}
	for c := range 256 {
		add(string(alphabetRune(byte(c))))
	}
	// Merges of each word from left to right make it one token, and nothing across words.
	for _, w := range words {
		done := string(alphabetRune(w[0]))
		for i := 1; i < len(w); i++ {
			next := string(alphabetRune(w[i]))
			merges = append(merges, done+" "+next)
			done += next
			add(done)
		}
	}
	b.Set("tokenizer.ggml.model", "gpt2")
	b.Set("tokenizer.ggml.pre", pre)
	b.Set("tokenizer.ggml.tokens", tokens)
	b.Set("tokenizer.ggml.merges", merges)
	f, err := read(b.Bytes())
	require.NoError(t, err)
	tok, err := model.NewTokenizer(f)
	require.NoError(t, err)
	return tok
}

// TestPretokenizer_Words compares words with those that the package tokenizers cuts by the patterns of
// the models' authors. A vocabulary in which every merge exists shows them: whatever stays apart was
// cut by the pattern.
func TestPretokenizer_Words(t *testing.T) {
	var vectors []struct {
		Pre, Text string
		Words     []string
	}
	readJSON(t, "testdata/words.json", &vectors)
	require.GreaterOrEqual(t, len(vectors), 290)
	for _, v := range vectors {
		t.Run(v.Pre+"/"+v.Text, func(t *testing.T) {
			var words []string
			require.NoError(t, model.Words(v.Pre, v.Text, func(s string) error {
				words = append(words, s)
				return nil
			}))
			require.Equal(t, v.Words, append([]string{}, words...))
		})
	}
	tok := wordTokenizer(t, "llama-bpe", []string{"ab", "abc"})
	require.Equal(t, []string{"abc", "d"}, pieces(t, tok, "abcd", false))
	require.Equal(t, []string{"abc"}, pieces(t, tok, "abc", false))
}

type spmVocabulary struct {
	Kind   string
	Prefix bool
	Tokens []string
	Scores []float32
	Kinds  []int32
	Texts  []struct {
		Text string
		IDs  []int32
	}
}

func (v *spmVocabulary) builder() *builder {
	b := &builder{}
	b.Set("tokenizer.ggml.model", "llama")
	b.Set("tokenizer.ggml.tokens", v.Tokens)
	b.Set("tokenizer.ggml.scores", v.Scores)
	b.Set("tokenizer.ggml.token_type", v.Kinds)
	b.Set("tokenizer.ggml.add_space_prefix", v.Prefix)
	return b
}

func spmVocabularies(t testing.TB) []spmVocabulary {
	t.Helper()
	var list []spmVocabulary
	readJSON(t, "testdata/spm.json", &list)
	require.Len(t, list, 2)
	return list
}

func (v *spmVocabulary) tokenizer(t testing.TB, change func(b *builder)) (*model.Tokenizer, error) {
	t.Helper()
	b := v.builder()
	if change != nil {
		change(b)
	}
	f, err := read(b.Bytes())
	require.NoError(t, err)
	return model.NewTokenizer(f)
}

// TestSPM_Vectors compares tokens with those of the package sentencepiece.
func TestSPM_Vectors(t *testing.T) {
	for _, v := range spmVocabularies(t) {
		tok, err := v.tokenizer(t, nil)
		require.NoError(t, err)
		require.True(t, tok.AddBOS)
		require.GreaterOrEqual(t, len(v.Texts), 40)
		for _, c := range v.Texts {
			got, err := tok.Encode(c.Text, false)
			require.NoError(t, err)
			require.Equal(t, append([]int32{}, c.IDs...), append([]int32{}, got...), "%q", c.Text)
			text, err := tok.Decode(got)
			require.NoError(t, err)
			want := c.Text
			if v.Prefix && want != "" {
				want = " " + want
			}
			require.Equal(t, want, string(text))
		}
		start, err := tok.Start("x", false)
		require.NoError(t, err)
		require.Equal(t, int32(1), start[0]) // <s>
	}
}

// TestSPM_Special: control tokens are recognised when asked for, user-defined ones always, and a prefix
// follows each.
func TestSPM_Special(t *testing.T) {
	v := spmVocabularies(t)[0]
	tok, err := v.tokenizer(t, nil)
	require.NoError(t, err)
	require.Equal(t, []string{" a", "<s>", " a", "<tag>", " a"}, pieces(t, tok, "a<s>a<tag>a", true))
	require.NotContains(t, pieces(t, tok, "a<s>a", false), "<s>")
	more, err := tok.Continue("a", false)
	require.NoError(t, err)
	text, err := tok.Decode(more)
	require.NoError(t, err)
	require.Equal(t, "a", string(text))
	require.True(t, tok.IsEnd(tok.EOS))
	require.False(t, tok.IsEnd(tok.BOS))

	tok, err = v.tokenizer(t, func(b *builder) {
		b.Set("general.architecture", "phi3")
		b.Set("tokenizer.ggml.add_bos_token", false)
		b.Set("tokenizer.ggml.eot_token_id", uint32(9))
	})
	require.NoError(t, err)
	require.Equal(t, []string{"<tag>", " a", "<s>", " ", " a"}, pieces(t, tok, "<tag> \n a<s> a", true))
	require.False(t, tok.AddBOS)
	require.True(t, tok.IsEnd(9))
}

func TestSPM_LongText(t *testing.T) {
	v := spmVocabularies(t)[1]
	tok, err := v.tokenizer(t, nil)
	require.NoError(t, err)
	text := strings.Repeat("the quick ", 1<<16) + strings.Repeat("<", 1<<18) + strings.Repeat("\n", 1<<16)
	ids, err := tok.Encode(text, true)
	require.NoError(t, err)
	back, err := tok.Decode(ids)
	require.NoError(t, err)
	require.True(t, text == string(back))
}

func TestSPM_Refuses(t *testing.T) {
	v := spmVocabularies(t)[0]
	for _, c := range []struct {
		name   string
		change func(b *builder)
		text   string
	}{
		{"no scores", func(b *builder) { b.Drop("tokenizer.ggml.scores") }, "scores"},
		{"few scores", func(b *builder) { b.Set("tokenizer.ggml.scores", []float32{1}) }, "scores"},
		{"prefix", func(b *builder) { b.Set("tokenizer.ggml.add_space_prefix", uint32(1)) }, "add_space_prefix"},
		{"bos rule", func(b *builder) { b.Set("tokenizer.ggml.add_bos_token", "yes") }, "add_bos_token"},
		{"byte", func(b *builder) {
			kinds := append([]int32{}, v.Kinds...)
			kinds[len(kinds)-1] = 6
			b.Set("tokenizer.ggml.token_type", kinds)
		}, "want a byte"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := v.tokenizer(t, c.change)
			requireTyped(t, err)
			require.ErrorIs(t, err, quant.ErrCorrupt)
			require.ErrorContains(t, err, c.text)
		})
	}
	tok, err := v.tokenizer(t, func(b *builder) { // without bytes, a character may have no token
		kinds := append([]int32{}, v.Kinds...)
		for i, k := range kinds {
			if k == 6 {
				kinds[i] = 3
			}
		}
		b.Set("tokenizer.ggml.token_type", kinds)
	})
	require.NoError(t, err)
	_, err = tok.Encode("日", false)
	require.ErrorIs(t, err, quant.ErrRange)
}

func FuzzSPM(f *testing.F) {
	v := spmVocabularies(f)[1]
	tok, err := v.tokenizer(f, nil)
	require.NoError(f, err)
	for _, c := range v.Texts {
		f.Add(c.Text, true)
	}
	f.Add("\xff\xc3<0x0A>\u2581", false)
	f.Fuzz(func(t *testing.T, text string, special bool) {
		ids, err := tok.Encode(text, special)
		require.NoError(t, err) // this vocabulary has all bytes
		back, err := tok.Decode(ids)
		require.NoError(t, err)
		require.Equal(t, strings.ReplaceAll(text, "\u2581", " "), string(back))
	})
}
