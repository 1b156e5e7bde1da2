// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/quant"
)

// evalInput returns an eval text.
func evalInput(t testing.TB, m *model.Model, i int, o Options) Input {
	t.Helper()
	text := texts.WithRole(texts.RoleEval)[i]
	in, err := Tokenize(m.Tokenizer(), text.Name, text.Body, o)
	require.NoError(t, err)
	return in
}

// named returns a method by its name.
func named(t testing.TB, name string) methods.Method {
	t.Helper()
	m, err := methods.ByName(name)
	require.NoError(t, err)
	return m
}

// fake is a method that calls a function.
type fake struct {
	name string
	f    func(c *methods.Context) *methods.Cache
}

func (f fake) Name() string   { return f.name }
func (f fake) Source() string { return "of the tests" }
func (f fake) Compress(_ context.Context, c *methods.Context) (*methods.Cache, error) {
	return f.f(c), nil
}

// identity keeps all rows exact.
func identity(c *methods.Context) *methods.Cache {
	out := &methods.Cache{Bytes: 4 * values(c.Geometry, len(c.Tokens))}
	for _, l := range c.Layers {
		out.Layers = append(out.Layers, methods.CacheLayer{K: l.K, V: l.V})
	}
	return out
}

func TestScorer_KnownDistributions(t *testing.T) {
	logs := func(p ...float64) []float32 {
		out := make([]float32, len(p))
		for i, x := range p {
			out[i] = float32(math.Log(x)) + 3 // any constant may be added to logits
		}
		return out
	}
	ref := newReference(3, []int32{0, 2})
	require.NoError(t, ref.add(0, logs(0.5, 0.25, 0.25)))
	require.NoError(t, ref.add(1, logs(0.1, 0.1, 0.8)))
	s := scorer{ref: ref}
	require.NoError(t, s.add(0, logs(0.25, 0.25, 0.5)))
	require.NoError(t, s.add(1, logs(0.1, 0.1, 0.8)))
	got, err := s.score()
	require.NoError(t, err)
	// Position 0: 0.5 ln(0.5/0.25) + 0.25 ln 1 + 0.25 ln(0.25/0.5) = 0.25 ln 2; position 1: 0.
	require.InDelta(t, 0.25*math.Ln2/2, got.KL, 1e-7)
	require.InDelta(t, 0.25*math.Ln2, got.KLMax, 1e-7)
	require.Equal(t, 0.5, got.Top1)
	// Only position 0 has a next token, token 2, which got 0.5.
	require.InDelta(t, math.Ln2, got.Surprisal, 1e-6)
	require.InDelta(t, 2, got.Perplexity, 1e-5)
}

func TestScorer_KLIsThatOfTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "vocab")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		a, b := make([]float32, n), make([]float32, n)
		for i := range a {
			a[i], b[i] = float32(r.NormFloat64()*5), float32(r.NormFloat64()*5)
		}
		ref := newReference(n, []int32{0})
		require.NoError(t, ref.add(0, a))
		self, _ := ref.kl(0, a)
		require.Zero(t, self, "an identical run")
		got, _ := ref.kl(0, b)
		var want, za, zb float64
		for i := range a {
			za, zb = za+math.Exp(float64(a[i])), zb+math.Exp(float64(b[i]))
		}
		for i := range a {
			p, q := math.Exp(float64(a[i]))/za, math.Exp(float64(b[i]))/zb
			want += p * (math.Log(p) - math.Log(q))
		}
		require.InDelta(t, want, got, 2e-6*(1+want))
	})
}

func TestScorer_RefusesWhatDoesNotFit(t *testing.T) {
	ref := newReference(2, []int32{0, 1})
	require.ErrorIs(t, ref.add(2, []float32{1, 2}), quant.ErrShape)
	require.ErrorIs(t, ref.add(0, []float32{1}), quant.ErrShape)
	require.ErrorIs(t, ref.add(0, []float32{float32(math.NaN()), 1}), quant.ErrRange)
	require.NoError(t, ref.add(0, []float32{1, 2}))
	s := scorer{ref: ref}
	require.ErrorIs(t, s.add(1, []float32{1, 2}), quant.ErrShape)
	require.ErrorIs(t, s.add(0, []float32{1, float32(math.NaN())}), quant.ErrRange)
	_, err := s.score()
	require.ErrorIs(t, err, quant.ErrShape, "half a run has no score")
}

func TestCollector_OrdersByHead(t *testing.T) {
	g := quant.Geometry{Layers: 1, Heads: 2, KVHeads: 1, HeadDim: 2, HeadDimV: 1,
		Rope: quant.Rope{Layout: quant.RopeNone}}
	c := newCollector(g, 3)
	// Two chunks: tokens 0 and 1, then 2 and one beyond the room. q of token t, head h is t, h.
	q := func(t int) []float32 { return []float32{float32(t), 0, float32(t), 1} }
	kv := func(t int) ([]float32, []float32) {
		return []float32{float32(t), 9},
			[]float32{float32(-t)}
	}
	for _, from := range []int{0, 2} {
		k0, v0 := kv(from)
		k1, v1 := kv(from + 1)
		require.NoError(t, c.observe(0, from, 2, append(q(from), q(from+1)...), append(k0, k1...),
			append(v0, v1...)))
	}
	ctx := c.context([]int32{5, 6, 7}, 3)
	require.Equal(t, []float32{0, 0, 1, 0, 2, 0, 0, 1, 1, 1, 2, 1}, ctx.Layers[0].Q)
	require.Equal(t, []float32{0, 9, 1, 9, 2, 9}, ctx.Layers[0].K)
	require.Equal(t, []float32{0, -1, -2}, ctx.Layers[0].V)
	short := c.context([]int32{5, 6, 7}, 2)
	require.Equal(t, []float32{0, 0, 1, 0, 0, 1, 1, 1}, short.Layers[0].Q)
	require.Equal(t, []int32{5, 6}, short.Tokens)
	require.ErrorIs(t, c.observe(1, 0, 0, nil, nil, nil), quant.ErrShape)
}

func TestKeepDropped_StaysDropped(t *testing.T) {
	layer := func(keep ...bool) *methods.Cache { return &methods.Cache{Layers: []methods.CacheLayer{{Keep: keep}}} }
	first := layer(true, false, true, true) // 2 heads, 2 tokens
	d := keepDropped(first, nil, 2, 2)
	require.Equal(t, []bool{false, true, false, false}, d[0])
	// Three tokens, all kept: token 1 of head 0 must not come back.
	next := &methods.Cache{Layers: []methods.CacheLayer{{}}}
	d2 := keepDropped(next, d, 2, 3)
	require.Equal(t, []bool{true, false, true, true, true, true}, next.Layers[0].Keep)
	require.Equal(t, []bool{false, true, false, false, false, false}, d2[0])
	// As a merged row it may come back.
	merged := &methods.Cache{Layers: []methods.CacheLayer{{Bias: []float32{0, 1, 0, 0, 0, 0}}}}
	keepDropped(merged, d, 2, 3)
	require.Equal(t, []bool{true, true, true, true, true, true}, merged.Layers[0].Keep)
}

func TestEvaluateText_ShortOrWrong(t *testing.T) {
	_, err := EvaluateText(context.Background(), nil, Input{Tokens: make([]int32, 10)}, nil,
		Options{})
	require.ErrorIs(t, err, quant.ErrShape)
	for _, o := range []Options{{Context: -1}, {Next: 1}, {Window: -3}, {Chunk: 1 << 30}} {
		_, err := EvaluateText(context.Background(), nil, Input{Tokens: make([]int32, 9999)}, nil,
			o)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	_, err = Evaluate(context.Background(), nil, nil, nil, Options{})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestEvaluate_ExactMethodIsExact(t *testing.T) {
	m := modeltest.SmolLM2(t)
	o := Options{Context: 160, Next: 40, Decode: true, Window: 32, Chunk: 48}
	half := fake{"half", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		for l := range out.Layers {
			n := len(c.Tokens)
			out.Layers[l].Keep = make([]bool, c.Geometry.KVHeads*n)
			for i := range out.Layers[l].Keep {
				out.Layers[l].Keep[i] = i%n < 4 || i%2 == 0
			}
		}
		out.Bytes /= 2
		return out
	}}
	zero := fake{"zero", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		for l := range out.Layers {
			out.Layers[l].V = make([]float32, len(out.Layers[l].V))
		}
		return out
	}}
	res, err := Evaluate(context.Background(), m, []Input{evalInput(t, m, 3, o)},
		[]methods.Method{fake{"identity", identity}, half, zero}, o)
	require.NoError(t, err)
	id, h, z := res.Methods[0], res.Methods[1], res.Methods[2]
	// AppendRows and Append of the same rows make the same blocks and the same numbers.
	require.Less(t, id.KL.Mean, 1e-9)
	require.Equal(t, 1.0, id.Top1)
	require.Equal(t, 32.0, id.BitsPerValue)
	require.InDelta(t, res.Exact.Perplexity, id.Perplexity, 1e-6*res.Exact.Perplexity)
	// Decoding uses other chunks, which changes rounding only.
	require.Less(t, id.Decoding.KL.Mean, 1e-6)
	require.Equal(t, 16.0, h.BitsPerValue)
	require.Greater(t, h.KL.Mean, 1e-3, "half of the rows are gone")
	require.Greater(t, h.Decoding.KL.Mean, 1e-4)
	require.Greater(t, z.KL.Mean, 0.1, "a context without values")
	require.Less(t, z.Top1, 1.0)
}

func TestEvaluate_RefusesWrongCaches(t *testing.T) {
	m := modeltest.SmolLM2(t)
	o := Options{Context: 8, Next: 4}
	in := evalInput(t, m, 0, o)
	for name, c := range map[string]*methods.Cache{
		"nil": nil, "no layers": {}, "few values": {Layers: make([]methods.CacheLayer, m.Layers)},
	} {
		_, err := EvaluateText(context.Background(), m, in,
			[]methods.Method{fake{name, func(*methods.Context) *methods.Cache { return c }}}, o)
		require.ErrorIs(t, err, quant.ErrShape, name)
		require.ErrorContains(t, err, name, "the method is named")
		decode := Options{Context: 8, Next: 4, Decode: true, Window: 2, Chunk: 4}
		whole := identity
		calls := 0
		_, err = EvaluateText(context.Background(), m, in,
			[]methods.Method{fake{name, func(x *methods.Context) *methods.Cache {
				if calls++; calls < 3 {
					return whole(x)
				}
				return c
			}}}, decode)
		require.ErrorIs(t, err, quant.ErrShape, name)
	}
	nan := fake{"nan", func(c *methods.Context) *methods.Cache {
		out := identity(c)
		out.Layers[0].V = append([]float32{float32(math.NaN())}, out.Layers[0].V[1:]...)
		return out
	}}
	_, err := EvaluateText(context.Background(), m, in, []methods.Method{nan}, o)
	require.ErrorIs(t, err, quant.ErrRange)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = EvaluateText(ctx, m, in, nil, o)
	require.ErrorIs(t, err, context.Canceled)
}

// The figures of well-known formats in this model are known, so a wrong measurement shows.
func TestEvaluate_KnownFormats(t *testing.T) {
	m := modeltest.SmolLM2(t)
	list := []methods.Method{named(t, "f16"), named(t, "ggml-q8_0"), named(t, "tqmse4"), named(t, "tqmse2")}
	o := Options{Context: 384, Next: 96}
	res, err := Evaluate(context.Background(), m,
		[]Input{evalInput(t, m, 2, o), evalInput(t, m, 6, o)}, list, o)
	require.NoError(t, err)
	for i, want := range []struct{ bits, low, high float64 }{
		{16, 0, 1e-5}, {8.5, 0, 2e-4}, {4.25, 0.002, 0.02}, {2.25, 0.05, 0.6},
	} {
		got := res.Methods[i]
		require.InDelta(t, want.bits, got.BitsPerValue, 0.01, got.Name)
		require.GreaterOrEqual(t, got.KL.Mean, want.low, got.Name)
		require.LessOrEqual(t, got.KL.Mean, want.high, got.Name)
	}
	require.InEpsilon(t, res.Exact.Perplexity, res.Methods[0].Perplexity, 1e-3, "f16")
	require.NoError(t, res.Compare("tqmse2", "tqmse4"))
	p := res.Pairs[0]
	require.Greater(t, p.Ratio.Low, 2.0, "two bits cost far more than four")
	require.Greater(t, p.KL.Low, 0.0)
	require.ErrorIs(t, res.Compare("tqmse2", "none"), quant.ErrShape)
	var page bytes.Buffer
	require.NoError(t, res.Markdown(&page))
	require.Contains(t, page.String(), "| tqmse4 | 4.2")
	_, err = json.Marshal(res)
	require.NoError(t, err, "no number is NaN")
}

// values returns the number of values of K and V in a context of n tokens.
func values(g quant.Geometry, n int) int64 {
	return int64(g.Layers) * int64(g.KVHeads) * int64(n) * int64(g.HeadDim+g.HeadDimV)
}
