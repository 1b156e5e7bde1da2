// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

var _ tune.Objective = (*Objective)(nil)

// calibInput returns the first calibration text.
func calibInput(t *testing.T, m *model.Model, o quality.Options) quality.Input {
	t.Helper()
	text := texts.WithRole(texts.RoleCalib)[0]
	in, err := quality.Tokenize(m.Tokenizer(), text.Name, text.Body, o)
	require.NoError(t, err)
	return in
}

// small is a text of 128 tokens and 8 questions, at two rates.
func small(t *testing.T, o Options) *Objective {
	m := modeltest.SmolLM2(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, be.Close()) })
	o.Context, o.Next, o.Backend = 128, 8, be
	in := calibInput(t, m, quality.Options{Context: 128, Next: 8})
	q, err := quality.NewRetrieval(m.Tokenizer(), []string{texts.WithRole(texts.RoleCalib)[0].Body},
		8, 256, 1)
	require.NoError(t, err)
	tu, err := New(context.Background(), m, []quality.Input{in}, q, o)
	require.NoError(t, err)
	return tu
}

func TestObjective_MeasuresWhatTheHarnessDoes(t *testing.T) {
	ctx := context.Background()
	tu := small(t, Options{Bits: []float64{8, 2.25}})
	params := profile.Params{"importance": "relevance=0.5,window=32,floor=0.1", "sinks": "8"}
	r, err := tu.Measure(ctx, params)
	require.NoError(t, err)
	require.Equal(t, []string{"calib-letters"}, r.Texts)

	list := []methods.Method{named(t, "kvist:8,importance=relevance=0.5;window=32;floor=0.1,sinks=8"),
		named(t, "kvist:2.25,importance=relevance=0.5;window=32;floor=0.1,sinks=8")}
	short := quality.Options{Context: 128, Next: 8}
	want, err := quality.EvaluateText(ctx, tu.m, calibInput(t, tu.m, short), list, short)
	require.NoError(t, err)
	for i, s := range want.Prefill {
		require.Equal(t, s.KL, r.KL[0][i], "a text measured again gives the same")
		require.Equal(t, s.BitsPerValue, r.BitsPerValue[0][i])
	}
	answers, err := (&quality.Retrieval{Contexts: []quality.RetrievalContext{tu.asked[0].rc}}).Ask(ctx,
		tu.m, list[1:], nil)
	require.NoError(t, err)
	found := func(a quality.Answers) (n int) {
		for _, ok := range a.Found[0] {
			if ok {
				n++
			}
		}
		return n
	}
	require.Equal(t, found(answers[0]), r.Exact)
	require.Equal(t, found(answers[1]), r.Found)
	require.Equal(t, 8, r.Asked)
	require.GreaterOrEqual(t, r.MeanLost(), 0.0)
	require.LessOrEqual(t, r.MeanLost(), 1.0)

	v, err := tu.Evaluate(ctx, params)
	require.NoError(t, err)
	require.InDelta(t, (math.Log(r.KL[0][0])+math.Log(r.KL[0][1]))/2+2*r.MeanLost(), v, 1e-12)
	ratio, lost, err := Compare(r, r)
	require.NoError(t, err)
	require.Equal(t, quality.Interval{Mean: 1, Low: 1, High: 1}, ratio)
	require.Equal(t, quality.Interval{}, lost)

	_, err = tu.Measure(ctx, profile.Params{"brightness": "11"})
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = tu.Measure(ctx, profile.Params{"bits": "11"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = tu.Measure(ctx, profile.Params{SensitivitySetting: "x"})
	require.ErrorIs(t, err, quant.ErrShape)
}

func TestObjective_BudgetThatCannotBeMet(t *testing.T) {
	tu := small(t, Options{Bits: []float64{0.01}})
	v, err := tu.Evaluate(context.Background(), nil)
	require.NoError(t, err)
	require.True(t, math.IsInf(v, 1))
	_, err = tu.Measure(context.Background(), nil)
	require.ErrorIs(t, err, quant.ErrBudget)
}

// TestObjective_Sensitivities measures layers: no divergence of a side of a layer is negative, the
// parts add up to about the whole, and the factors correct the prediction.
func TestObjective_Sensitivities(t *testing.T) {
	ctx := context.Background()
	tu := small(t, Options{Bits: []float64{2.5}})
	coding := quant.Coding{Format: quant.LM2, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}
	s, err := tu.MeasureSensitivities(ctx, coding, true, 1, nil)
	require.NoError(t, err)
	g := tu.m.Geometry()
	require.Equal(t, 2*g.Layers+1, s.Passes)
	require.Len(t, s.K, g.Layers*g.KVHeads)
	for i := range s.K {
		require.GreaterOrEqual(t, s.K[i], 0.0)
		require.GreaterOrEqual(t, s.V[i], 0.0)
		require.Equal(t, s.K[i/g.KVHeads*g.KVHeads], s.K[i], "heads of a layer share its value")
		require.Positive(t, s.PredictedK[i])
		require.Positive(t, s.PredictedV[i])
	}
	t.Logf("KL of all %.4f, of the parts %.4f", s.All, s.Sum())
	require.InDelta(t, 0, math.Log(s.Sum()/s.All), math.Log(4))

	f := s.Factors()
	n := float64(2 * len(s.K))
	var kl, predicted float64
	for i := range f.K {
		kl += s.K[i] + s.V[i]
		predicted += s.PredictedK[i] + s.PredictedV[i]
	}
	for i := range f.K {
		want := (s.K[i]*n/kl + 0.1) / (s.PredictedK[i]*n/predicted + 0.1)
		require.InEpsilon(t, want, float64(f.K[i]), 1e-5)
	}
	p, err := profile.New("", g)
	require.NoError(t, err)
	p, err = p.WithSensitivity(f, nil)
	require.NoError(t, err)
	with := tu.WithSensitivity(p)
	require.NotEqual(t, tu.Identity(), with.Identity())
	off, err := with.Evaluate(ctx, profile.Params{SensitivitySetting: "0"})
	require.NoError(t, err)
	plain, err := tu.Evaluate(ctx, nil)
	require.NoError(t, err)
	require.Equal(t, plain, off)
	on, err := with.Evaluate(ctx, profile.Params{SensitivitySetting: "0.5"})
	require.NoError(t, err)
	require.NotEqual(t, plain, on)

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = tu.MeasureSensitivities(cancelled, coding, true, 1, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestObjective_Refusals(t *testing.T) {
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	for _, o := range []Options{{}, {Backend: be}, {Backend: be, Bits: []float64{}},
		{Backend: be, Bits: []float64{math.NaN()}}, {Backend: be, Penalty: math.Inf(1)}} {
		_, err := New(context.Background(), nil, nil, nil, o)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	a, b := &Measured{Texts: []string{"a"}}, &Measured{Texts: []string{"b"}}
	_, _, err = Compare(a, b)
	require.ErrorIs(t, err, quant.ErrShape)
}
