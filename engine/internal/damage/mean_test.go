// SPDX-License-Identifier: Apache-2.0

package damage_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// Of rows that share a constant of 8 RMS and are coded without it, an error of K costs what it costs in a head
// without the constant. Late sinks, which take much attention, are attended to.
func TestPricer_Mean(t *testing.T) {
	const tokens, dim, group = 512, 32, 2
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	k := quanttest.Rows(quanttest.Gaussian, tokens, dim, 1)
	v := quanttest.Rows(quanttest.Gaussian, tokens, dim, 2)
	q := quanttest.Rows(quanttest.Gaussian, group*tokens, dim, 3)
	shared := quanttest.Rows(quanttest.Gaussian, 1, dim, 4).Row(0)
	layer := func(shift float32, late bool) *input.Layer {
		x := quant.Rows{Dim: dim, Data: append([]float32(nil), k.Data...)}
		for r := range tokens {
			for d, c := range shared {
				x.Row(r)[d] += shift * c
				if late && (r == 100 || r == 300) { // as sinks are: opposite to the others
					x.Row(r)[d] = -x.Row(r)[d] / 8
				}
			}
		}
		return &input.Layer{Name: "layer 0", K: input.Floats("k", x.Data, tokens, dim), V: input.Floats("v", v.Data, tokens, dim),
			Q: input.Floats("q", q.Data, tokens, dim), HasV: true, HasQ: true, Heads: 1, Tokens: tokens, Segment: 128}
	}
	price := func(shift float32, mean, late bool) damage.Head {
		c := &damage.Pricer{Backend: be, Sinks: 4, Seed: 1, RowBias: true, Mean: mean,
			Geo: quant.Geometry{Layers: 1, Heads: group, KVHeads: 1, HeadDim: dim, HeadDimV: dim}}
		st, err := c.Calibrate(context.Background(), layer(shift, late), 0, nil, nil)
		require.NoError(t, err)
		return st
	}
	want, got := price(0, false, false), price(8, true, false)
	require.InEpsilon(t, want.KSensitivity, got.KSensitivity, 0.3)
	require.InEpsilon(t, want.VSensitivity, got.VSensitivity, 0.01, "V is coded as it was")
	// If the late rows were left out, errors would be as large at 3 bits as at 1.
	got = price(8, true, true)
	require.Less(t, got.KCurve[1], 3.0)
	require.Greater(t, got.KCurve[1], 0.3)
}
