// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/quant"
)

func TestRetrieval_ExactCacheFindsNearlyAll(t *testing.T) {
	m := modeltest.SmolLM2(t)
	var bodies []string
	for _, x := range texts.WithRole(texts.RoleEval) {
		bodies = append(bodies, x.Body)
	}
	q, err := NewRetrieval(m.Tokenizer(), bodies, 16, 512, 1)
	require.NoError(t, err)
	require.Equal(t, 16, q.Asked())
	amnesia := fake{"amnesia", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		for l := range out.Layers {
			n := len(c.Tokens)
			out.Layers[l].Keep = make([]bool, c.Geometry.KVHeads*n)
			for i := range out.Layers[l].Keep {
				out.Layers[l].Keep[i] = i%n < 4
			}
		}
		return out
	}}
	a, err := q.Ask(context.Background(), m, []methods.Method{amnesia}, nil)
	require.NoError(t, err)
	found, asked := a[0].Count(q, "")
	require.Equal(t, 16, asked)
	require.GreaterOrEqual(t, found, 15, "the exact cache")
	found, _ = a[1].Count(q, "")
	require.LessOrEqual(t, found, 2, "without the context answers are guesses")
	r := Results{Methods: []MethodResult{{Name: "amnesia"}}}
	require.NoError(t, r.AddRetrieval(q, a))
	require.Less(t, r.Methods[0].Retrieval.AgainstExact.High, -0.5)
	require.ErrorIs(t, r.AddRetrieval(q, a[:1]), quant.ErrShape)
}

// One pass over many questions equals a pass for each, except for the positions: only the first question
// has the position that it has alone.
func TestFan_ContinuationsDoNotSeeEachOther(t *testing.T) {
	m := modeltest.SmolLM2(t)
	in := evalInput(t, m, 0, Options{Context: 100, Next: 30})
	_, kv, err := Prefill(context.Background(), m, in.Tokens[:100], false)
	require.NoError(t, err)
	a, b := in.Tokens[100:110], in.Tokens[110:130]
	alone, err := m.Forward(a, kv.Clone(), 100, model.ForwardOptions{})
	require.NoError(t, err)
	// The second one alone, at the positions it has in the pass.
	late := fan{geo: m.Geometry(), base: 100, parts: []fanPart{{kv.Clone(), 10, 30}}}
	lateAlone, err := m.Forward(b, &late, 110, model.ForwardOptions{})
	require.NoError(t, err)
	both := fan{geo: m.Geometry(), base: 100, parts: []fanPart{{kv.Clone(), 0, 10}, {kv.Clone(),
		10, 30}}}
	got := map[int][]float32{}
	_, err = m.Forward(in.Tokens[100:130], &both, 100,
		model.ForwardOptions{Logits: model.LogitsAll, Chunk: 7,
			OnLogits: func(i int, x []float32) error {
				got[i] = append([]float32{}, x...)
				return nil
			}})
	require.NoError(t, err)
	for i, want := range map[int][]float32{9: alone, 29: lateAlone} {
		for j := range want {
			require.InDelta(t, want[j], got[i][j], 2e-3)
		}
	}
}

func TestNewRetrieval_QuestionsFitTheirContexts(t *testing.T) {
	m := modeltest.SmolLM2(t)
	tok := m.Tokenizer()
	body := texts.All()[0].Body
	q, err := NewRetrieval(tok, []string{body}, 20, 700, 7)
	require.NoError(t, err)
	again, err := NewRetrieval(tok, []string{body}, 20, 700, 7)
	require.NoError(t, err)
	require.Equal(t, q, again, "the same seed gives the same questions")
	other, err := NewRetrieval(tok, []string{body}, 20, 700, 8)
	require.NoError(t, err)
	require.NotEqual(t, q.Contexts[0].Questions, other.Contexts[0].Questions)
	require.GreaterOrEqual(t, q.Asked(), 20)
	kinds := map[string]int{}
	for _, c := range q.Contexts {
		require.LessOrEqual(t, len(c.Tokens), 700)
		require.Greater(t, len(c.Tokens), 500)
		text, err := tok.Decode(c.Tokens)
		require.NoError(t, err)
		for _, x := range c.Questions {
			kinds[x.Kind]++
			about := x.Prompt[strings.LastIndex(x.Prompt, "\n")+1:]
			require.Equal(t, 1, strings.Count(string(text), about+x.Answer), "%q is there once",
				about)
			require.Equal(t, 1, strings.Count(string(text), about), "and has one answer")
			asked, err := tok.Decode(append(append([]int32{}, x.PromptTokens...),
				x.AnswerTokens...))
			require.NoError(t, err)
			require.Equal(t, x.Prompt+x.Answer, string(asked))
			at := float64(strings.Index(string(text), about)) / float64(len(text))
			require.InDelta(t, at, x.Depth, 0.1)
		}
	}
	require.Len(t, kinds, 2)
	for _, bad := range []struct {
		texts          []string
		questions, tok int
	}{{nil, 1, 700}, {[]string{body}, 0, 700}, {[]string{body}, 1, 100}, {[]string{""}, 1, 700}} {
		_, err := NewRetrieval(tok, bad.texts, bad.questions, bad.tok, 1)
		require.ErrorIs(t, err, quant.ErrShape)
	}
}
