// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

func drawResiduals(rows, dim, order int) *backend.Residuals {
	rng := rand.New(rand.NewPCG(uint64(rows), uint64(dim*100+order)))
	r := &backend.Residuals{X: make([]float32, (order+rows)*dim), Dim: dim,
		Weights: make([]float64, rows*order), Order: order}
	for i := range r.X {
		r.X[i] = float32(rng.NormFloat64())
	}
	for i := range r.Weights {
		r.Weights[i] = rng.NormFloat64()
	}
	return r
}

// residualBits computes the sums in the documented order, in arithmetic that rounds to 53 bits.
func residualBits(r *backend.Residuals, row int) backend.Residual {
	num := func(v float64) *big.Float { return new(big.Float).SetPrec(53).SetFloat64(v) }
	mul := func(a, b *big.Float) *big.Float { return new(big.Float).SetPrec(53).Mul(a, b) }
	var left, own [32]*big.Float
	for i := range left {
		left[i], own[i] = num(0), num(0)
	}
	for d := range r.Dim {
		v := num(float64(r.X[(row+r.Order)*r.Dim+d]))
		x := new(big.Float).Set(v)
		for i := range r.Order {
			past := num(float64(r.X[(row+r.Order-1-i)*r.Dim+d]))
			x.Sub(x, mul(num(r.Weights[row*r.Order+i]), past))
		}
		left[d%32].Add(left[d%32], mul(x, x))
		own[d%32].Add(own[d%32], mul(v, v))
	}
	for n := 16; n > 0; n /= 2 {
		for i := range n {
			left[i].Add(left[i], left[i+n])
			own[i].Add(own[i], own[i+n])
		}
	}
	l, _ := left[0].Float64()
	o, _ := own[0].Float64()
	return backend.Residual{Left: l, Own: o}
}

func testResiduals(t *testing.T, b backend.Backend) {
	p, ok := b.(backend.Predictor)
	if !ok {
		t.Skip("the backend does not implement Predictor")
	}
	for _, s := range [][3]int{{0, 8, 4}, {1, 1, 0}, {1, 1, 1}, {3, 31, 4}, {5, 32, 8}, {300, 33, 2},
		{17, 128, 5}, {2, 1000, 64}} {
		t.Run(fmt.Sprintf("rows=%d/dim=%d/order=%d", s[0], s[1], s[2]), func(t *testing.T) {
			r := drawResiduals(s[0], s[1], s[2])
			out := make([]backend.Residual, s[0])
			require.NoError(t, p.Residuals(context.Background(), r, out))
			for row, got := range out {
				require.Equal(t, residualBits(r, row), got, "row %d", row)
			}
		})
	}
}

func testResidualsArguments(t *testing.T, b backend.Backend) {
	p, ok := b.(backend.Predictor)
	if !ok {
		t.Skip("the backend does not implement Predictor")
	}
	for name, c := range map[string]struct {
		change func(r *backend.Residuals)
		want   error
	}{
		"dim 0":          {func(r *backend.Residuals) { r.Dim = 0 }, quant.ErrShape},
		"negative order": {func(r *backend.Residuals) { r.Order = -1 }, quant.ErrShape},
		"order":          {func(r *backend.Residuals) { r.Order = backend.MaxResidualOrder + 1 }, quant.ErrShape},
		"row missing":    {func(r *backend.Residuals) { r.X = r.X[r.Dim:] }, quant.ErrShape},
		"part of a row":  {func(r *backend.Residuals) { r.X = r.X[1:] }, quant.ErrShape},
		"weights":        {func(r *backend.Residuals) { r.Weights = r.Weights[1:] }, quant.ErrShape},
		"NaN":            {func(r *backend.Residuals) { r.X[3] = float32(math.NaN()) }, quant.ErrRange},
		"infinite":       {func(r *backend.Residuals) { r.Weights[3] = math.Inf(1) }, quant.ErrRange},
	} {
		t.Run(name, func(t *testing.T) {
			r := drawResiduals(4, 8, 2)
			c.change(r)
			out := []backend.Residual{{Left: -1}, {Left: -1}, {Left: -1}, {Left: -1}}
			require.ErrorIs(t, p.Residuals(context.Background(), r, out), c.want)
			require.Equal(t, []backend.Residual{{Left: -1}, {Left: -1}, {Left: -1}, {Left: -1}}, out)
		})
	}
}
