// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/model/modeltest"
	"github.com/kvist-project/kvist/quant"
)

// A cache with room for everything predicts as the exact one does; one under a budget keeps it, and comes
// close.
func TestMeasureServing(t *testing.T) {
	m := modeltest.SmolLM2(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	in := evalInput(t, m, 0, Options{Context: 192, Next: 64})
	o := ServingOptions{Tokens: 256, Window: 64, Chunk: 32, Shares: []float64{2, 0.9},
		Config: engine.Config{Window: 32, Segment: 64}}
	res, err := MeasureServing(context.Background(), be, m, in.Tokens, o)
	require.NoError(t, err)
	for _, kl := range res[0].KL {
		require.Less(t, kl, 1e-5) // rounding to binary16
	}
	require.Zero(t, res[0].Stats.Units)
	require.LessOrEqual(t, res[1].Peak, res[1].Budget)
	require.NotZero(t, res[1].Stats.Units)
	require.Less(t, res[1].KL[3], 0.05)
	_, err = MeasureServing(context.Background(), be, m, in.Tokens, ServingOptions{Tokens: 100, Window: 64})
	require.ErrorIs(t, err, quant.ErrShape)
}

// A cache with room for everything finds what the exact one finds; one with a third of the room finds less, and
// closes the windows of those who wait.
func TestMeasureHeld(t *testing.T) {
	m := modeltest.SmolLM2(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	r, err := NewRetrieval(m.Tokenizer(), []string{texts.All()[0].Body}, 16, 256, 1)
	require.NoError(t, err)
	want, err := r.Ask(context.Background(), m, nil, nil)
	require.NoError(t, err)
	count := func(all [][]bool) (n int) {
		for _, c := range all {
			for _, ok := range c {
				if ok {
					n++
				}
			}
		}
		return n
	}
	cfg := engine.Config{Window: 32, Segment: 64}
	h, err := MeasureHeld(context.Background(), be, m, r, HeldOptions{Budget: 64 << 20, Config: cfg})
	require.NoError(t, err)
	require.InDelta(t, count(want[0].Found), count(h.Found), 1, "questions have other positions there")
	require.Zero(t, h.Stats.Units)
	less, err := MeasureHeld(context.Background(), be, m, r, HeldOptions{Budget: 6 << 20, Config: cfg})
	require.NoError(t, err)
	require.Less(t, less.Bytes, h.Bytes/2)
	require.EqualValues(t, 2, less.Stats.Folded)
	require.LessOrEqual(t, less.Stats.PeakBytes, int64(6<<20))
}

// What a model writes over a cache with room for everything is as likely as what it writes over the exact one.
func TestMeasureChain(t *testing.T) {
	m := modeltest.SmolLM2(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	in := evalInput(t, m, 0, Options{Context: 64, Next: 64})
	all, err := MeasureChain(context.Background(), be, m, in.Tokens[:64], ChainOptions{Tokens: 24, Temperature: 0.8, Seed: 1,
		Shares: []float64{4}, Config: engine.Config{Window: 32, Segment: 64}})
	require.NoError(t, err)
	require.Equal(t, 24, all[0].Same)
	require.Greater(t, all[1].Same, 4)
	require.InDelta(t, all[0].Surprisal, all[1].Surprisal, 1)
	require.Len(t, all[1].Tokens, 24)
}
