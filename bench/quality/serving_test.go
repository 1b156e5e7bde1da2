// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

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
