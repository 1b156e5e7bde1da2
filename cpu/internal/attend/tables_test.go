// SPDX-License-Identifier: Apache-2.0

package attend

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// Inner products from tables equal those of float64, for every format, number of heads and range of
// rows. They do not depend on the number of heads.
func TestDotTables(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	for _, f := range byteFormats[:4] {
		for _, dim := range []int{64, 128, 192} {
			require.True(t, Generic().Tables(f, dim))
			for heads := 1; heads <= 7; heads++ {
				n := 1 + rng.IntN(TileRows)
				rows := n + rng.IntN(40)
				checkDotTables(t, rng, f, rows, dim, rng.IntN(rows-n+1), n, heads)
			}
		}
	}
	for _, f := range quant.Formats() {
		require.Equal(t, f.Nested(), Generic().Tables(f, 64), "%s", f)
		require.False(t, Generic().Tables(f, 96), "%s", f)
	}
}

func checkDotTables(t *testing.T, rng *rand.Rand, f quant.Format, rows, dim, r0, n, heads int) {
	t.Helper()
	c := quant.Coding{Format: f}
	packed := randomBytes(rng, c.PackedBytes(rows, dim))
	src := tight(t, packed)
	q := make([]float32, heads*dim)
	for i := range q {
		q[i] = float32(rng.NormFloat64())
	}
	tables := make([]float32, heads*TableFloats(dim))
	for h := range heads {
		FillTables(tables[h*TableFloats(dim):(h+1)*TableFloats(dim)], q[h*dim:(h+1)*dim])
	}
	dots, check := fenced(t, heads*TileRows)
	DotTables(dots, tables, heads, c, src, rows, dim, r0, n)
	check()
	one := make([]float32, TileRows)
	largest := 0.0
	for _, x := range walsh[f] {
		largest += math.Abs(float64(x))
	}
	for h := range heads {
		DotTables(one, tables[h*TableFloats(dim):], 1, c, src, rows, dim, r0, n)
		sameBits(t, one[:n], dots[h*TileRows:][:n])
		for r := range n {
			var want, size float64
			for i, x := range q[h*dim : (h+1)*dim] {
				want += float64(x) * float64(centroid(f, packed, rows, dim, r0+r, i))
				size += math.Abs(float64(x))
			}
			// A sum of 64 signed values rounds 9 times at most, then with its factor and once for every product.
			// product.
			bound := float64(18+8*dim/64) * largest * size / (1 << 24)
			require.InDelta(t, want, float64(dots[h*TileRows+r]), bound)
		}
	}
}
