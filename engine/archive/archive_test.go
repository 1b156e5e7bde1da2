// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// gaussian returns a codec with tables fitted to a Gaussian source, and rows of it.
func gaussian(t testing.TB, rows, dim int, s float64, lambda float32) (*Codec, *Prepared, *Segment, []float32, int) {
	rng := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, rows*dim)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	m := NewMoments(dim)
	m.AddDiagonal(x)
	tr := FitTransform(m, nil, false)
	set := &Set{Tables: DefaultTables(), Heads: 1, Sides: 1, Layers: []int{0}, Transforms: [][]*Transform{{tr}}}
	set.Tables.Prior = 64 << 12
	p := &Params{Fine: 1, Set: set, Own: true}
	seg := &Segment{Pos: make([]int64, rows), Rows: [][]float32{append([]float32{}, x...)}, Dims: []int{dim},
		Class: [][]uint8{make([]uint8, rows)}, Step8: []int{0}}
	for i := range seg.Pos {
		seg.Pos[i] = int64(i)
	}
	c, err := NewCodec(p, true)
	require.NoError(t, err)
	pre, err := c.Prepare(seg)
	require.NoError(t, err)
	s8 := p.SetStep(s)
	for range 3 {
		var f Fit
		c.Fit(&f, pre, s8, Effort{Lambda: lambda})
		set.Tables = f.Tables(set.Tables)
		c, err = NewCodec(p, true)
		require.NoError(t, err)
	}
	return c, pre, seg, x, s8
}

func TestGaussian_NearBound(t *testing.T) {
	const rows, dim = 512, 64
	for _, s := range []float64{4, 8, 12, 16} {
		for _, lambda := range []float32{0, 0.06, 0.1, 0.15, 0.2} {
			c, pre, seg, x, s8 := gaussian(t, rows, dim, s-8, lambda)
			b := c.Encode(nil, pre, s8, Effort{Lambda: lambda})
			ideal := c.Cost(pre, s8, Effort{Lambda: lambda})
			out := &Segment{Pos: make([]int64, rows), Rows: [][]float32{make([]float32, rows*dim)}, Dims: seg.Dims}
			require.NoError(t, c.Decode(out, b, nil))
			var e float64
			for i, v := range out.Rows[0] {
				d := float64(v) - float64(x[i])
				e += d * d
			}
			e /= rows * dim
			bits := ideal / rows / dim
			all := 8 * float64(len(b)) / rows / dim
			fmt.Printf("s %g lambda %g bits %.4f all %.4f (%.4f) D %.4f over bound %.3f\n", s, lambda, bits, all, all/bits, e, e/math.Exp2(-2*bits))
		}
	}
	_ = quant.Float16
}
