// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
)

func TestHoldout_Verdict(t *testing.T) {
	for want, x := range map[string]struct{ ratio, lost intervalJSON }{
		"better":         {intervalJSON{0.8, 0.7, 0.9}, intervalJSON{0, -0.1, 0.1}},
		"LOSES":          {intervalJSON{0.8, 0.7, 0.9}, intervalJSON{0.2, 0.1, 0.3}},
		"WORSE":          {intervalJSON{1.2, 1.1, 1.3}, intervalJSON{}},
		"cannot be told": {intervalJSON{0.9, 0.7, 1.1}, intervalJSON{}},
	} {
		h := &holdoutJSON{Texts: 3, Bits: []float64{2.5}, Ratio: x.ratio, Lost: x.lost,
			Before: measuredJSON{KL: []float64{0.02}, Found: 5, Exact: 8, Asked: 8},
			After:  measuredJSON{KL: []float64{0.01}, Found: 6, Exact: 8, Asked: 8}}
		var b strings.Builder
		p := &printer{w: &b}
		h.print(p)
		require.NoError(t, p.err)
		require.Contains(t, b.String(), want)
		require.Contains(t, b.String(), "found 5 before, 6 after, 8 by the exact cache, of 8")
	}
}

// An ablation puts a changed setting back to its start, and an unchanged one to the best of its grid.
func TestGridBest(t *testing.T) {
	space := tune.Space{{Name: "sinks", Start: "4", Grid: []string{"2", "8"}}}
	at := func(stage, sinks string, value float64) tune.Evaluation {
		return tune.Evaluation{Stage: stage, Params: profile.Params{"sinks": sinks}, Value: value}
	}
	res := &tune.Result{Trail: []tune.Evaluation{at("start", "4", 1), at("grid sinks", "2", 3),
		at("grid sinks", "8", 2), at("refine", "9", 0)}}
	require.Equal(t, "8", gridBest(res, space, "sinks"))
	require.Empty(t, gridBest(res, space, "unseen"))
}

func TestTextHashes(t *testing.T) {
	require.Equal(t, "a:ca978112ca1bbdca b:3e23e8160039594a",
		textHashes(map[string][]byte{"b": []byte("b"), "a": []byte("a")}))
}
