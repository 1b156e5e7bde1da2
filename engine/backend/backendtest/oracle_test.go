// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// hand is a block whose attention is easy to compute by hand: K rows (1,0), (0,2), (3,3).
func hand() known {
	f32 := quant.Coding{Format: quant.F32}
	return known{
		spec:   spec{rows: 3, k: f32, v: f32, base: 10},
		kRows:  quant.Rows{Dim: 2, Data: []float32{1, 0, 0, 2, 3, 3}},
		vRows:  quant.Rows{Dim: 1, Data: []float32{10, 20, 40}},
		scales: []float32{0, 0, 2},
	}
}

func handQuery() *backend.Queries {
	return &backend.Queries{Q: []float32{2, 1}, Group: 1, HeadDim: 2, HeadDimV: 1, Scale: 0.5,
		BlockPtr: []int32{0, 1}, BlockIdx: []int32{0}}
}

func TestOracle_ByHand(t *testing.T) {
	// Scores 0.5*2 = 1, 0.5*2 = 1, 0.5*9 = 4.5.
	e := math.Exp(3.5)
	got := oracleAttend(t, handQuery(), []known{hand()}, 0, 0)
	require.InDelta(t, (10+20+40*e)/(2+e), got.out[0], 1e-12)
	require.InDelta(t, 1+math.Log(2+e), got.lse, 1e-12)
	require.Less(t, got.tol[0], 1e-3, "a tolerance that tells something")
	require.Less(t, got.lseTol, 1e-4)
}

func TestOracle_Masks(t *testing.T) {
	q := handQuery()
	q.Pos = []int64{11} // the last row, at 12, comes later
	require.InDelta(t, 15, oracleAttend(t, q, []known{hand()}, 0, 0).out[0], 1e-12)
	q.Window = 1
	require.InDelta(t, 20, oracleAttend(t, q, []known{hand()}, 0, 0).out[0], 1e-12)
	q.Pos[0] = 9
	none := oracleAttend(t, q, []known{hand()}, 0, 0)
	require.Equal(t, 0.0, none.out[0])
	require.True(t, math.IsInf(none.lse, -1))
	b := hand()
	b.pos = []uint16{50, 51, 0}
	q.Pos, q.Window = []int64{10}, 0
	require.InDelta(t, 40, oracleAttend(t, q, []known{b}, 0, 0).out[0], 1e-12)
}

func TestOracle_Biases(t *testing.T) {
	b := hand()
	b.count = []uint16{1, 5, 1}
	b.bias = []float32{0, 0, float32(math.Inf(-1))}
	require.InDelta(t, (10+20*5.0)/6, oracleAttend(t, handQuery(), []known{b}, 0, 0).out[0], 1e-12)
	// Noise: 1/2 * Scale^2 * |q|^2 * noise * scale^2 = 0.5*0.25*5*1.4*4 = 3.5 off the last score.
	b = hand()
	b.noise = 1.4
	require.InDelta(t, 70.0/3, oracleAttend(t, handQuery(), []known{b}, 0, 0).out[0], 1e-5)
	// It equals the bias of package quant.
	require.InDelta(t, -3.5, quant.RowBias(0.5, 5, 1.4, 2), 1e-6)
	q := handQuery()
	q.Softcap = 2
	rows := oracleScores(q, []known{hand()}, 0, 0)
	require.InDelta(t, 2*math.Tanh(4.5/2), rows[2].score, 1e-12)
}

// Rotating q by an offset equals moving its position: q at position p+o gives the scores of q at p,
// rotated by o.
func TestTurn_AddsPositions(t *testing.T) {
	for _, layout := range []quant.RopeLayout{quant.RopeHalf, quant.RopeInterleaved} {
		r := quant.Rope{Layout: layout, RotaryDim: 6, Theta: 100}
		x := quanttest.Rows(quanttest.Gaussian, 1, 8, 1).Data
		a, b := make([]float64, 8), make([]float64, 8)
		for i, v := range x {
			a[i], b[i] = float64(v), float64(v)
		}
		turnFloat64(a, &r, 30)
		turnFloat64(a, &r, -13)
		turnFloat64(b, &r, 17)
		for i := range a {
			require.InDelta(t, b[i], a[i], 1e-12)
		}
		require.Equal(t, float64(x[6]), a[6], "what does not rotate stays")
		require.NotEqual(t, float64(x[0]), a[0])
	}
}
