// SPDX-License-Identifier: Apache-2.0

package report_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

func TestAttentionOf_KindsOfLayers(t *testing.T) {
	rope := quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 1e4}
	g := quant.Geometry{Layers: 3, Heads: 1, KVHeads: 1, HeadDim: 16, HeadDimV: 16, Rope: rope}
	require.Nil(t, report.AttentionOf(g))
	local := quant.LayerAttention{Rope: rope, Window: 512}
	g.PerLayer = []quant.LayerAttention{local, {Softcap: 30, Scale: 0.5}, local}
	require.Equal(t, []report.Attention{
		{Layers: []int{0, 2}, Window: 512, Scale: 0.25, Rope: "half", RotaryDim: 16, Theta: 1e4},
		{Layers: []int{1}, Scale: 0.5, Softcap: 30, Rope: "none"},
	}, report.AttentionOf(g))
	plain := quant.LayerAttention{Rope: rope}
	g.PerLayer = []quant.LayerAttention{plain, plain, plain}
	require.Nil(t, report.AttentionOf(g))
}
