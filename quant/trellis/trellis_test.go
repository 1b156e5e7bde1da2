// SPDX-License-Identifier: Apache-2.0

package trellis_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

func gaussian(n int, seed uint64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 7))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func uniform(n int, width uint8) []uint8 {
	w := make([]uint8, n)
	for i := range w {
		w[i] = width
	}
	return w
}

func coded(t *testing.T, x []float32, widths []uint8) (codes []uint8, y []float32) {
	t.Helper()
	codes, y = make([]uint8, len(x)), make([]float32, len(x))
	require.NoError(t, trellis.Encode(codes, x, widths))
	require.NoError(t, trellis.Decode(y, codes, widths))
	return codes, y
}

func damage(x, y []float32) (sum float64) {
	for i := range x {
		sum += float64(x[i]-y[i]) * float64(x[i]-y[i])
	}
	return sum
}

// The distortion of a Gaussian is what Distortion says, and as far below that of a scalar quantizer as the
// package comment says. Rows of 384 start in a known state, which costs half a per cent.
func TestDistortion_Gaussian(t *testing.T) {
	lloydMax := []float64{1: 0.3634, 0.1175, 0.03454, 0.009497}
	gain := []float64{1: 0.78, 1.37, 1.69, 1.83}
	const rows, dim = 160, 384
	for width := 1; width <= trellis.MaxWidth; width++ {
		var sum float64
		for r := range rows {
			x := gaussian(dim, uint64(r))
			_, y := coded(t, x, uniform(dim, uint8(width)))
			sum += damage(x, y)
		}
		got := sum / (rows * dim)
		require.InEpsilon(t, trellis.Distortion(width), got, 0.02, "width %d", width)
		if width < len(lloydMax) {
			require.Greater(t, 10*math.Log10(lloydMax[width]/got), gain[width]-0.06, "dB at width %d", width)
		}
	}
}

// The levels are centroids of their cells: another step of training does not move them, and they mirror.
func TestLevels_AreCentroids(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for width := 1; width <= 4; width++ {
		levels := trellis.Levels(width)
		require.Len(t, levels, 2<<width)
		_, centroids := step(levels, width, 1<<16, rng)
		for k, l := range levels {
			require.Equal(t, l, -levels[len(levels)-1-k])
			require.InDelta(t, l, centroids[k], 0.04, "level %d of width %d", k, width)
		}
		scan, unit := trellis.ScanLevels(width)
		for k, l := range levels {
			require.InDelta(t, l, float32(int(scan[k])-trellis.ScanZero)*unit, float64(unit)/2*1.001)
		}
	}
}

// Encode finds the best of all paths.
func TestEncode_Optimal(t *testing.T) {
	widths := []uint8{2, 1, 0, 1, 2, 1, 3}
	for seed := range uint64(20) {
		x := gaussian(len(widths), seed)
		_, y := coded(t, x, widths)
		best := math.Inf(1)
		codes := make([]uint8, len(x))
		for all := range 1 << 10 {
			rest := all
			for i, b := range widths {
				codes[i] = uint8(rest & (1<<b - 1))
				rest >>= b
			}
			require.NoError(t, trellis.Decode(y, codes, widths))
			best = min(best, damage(x, y))
		}
		codes, y = coded(t, x, widths)
		require.InDelta(t, best, damage(x, y), 1e-5)
		require.Zero(t, codes[2])
	}
}

// A level depends on the last four bits of the path alone.
func TestDecode_Window(t *testing.T) {
	const dim = 64
	widths := uniform(dim, 3)
	codes, y := coded(t, gaussian(dim, 5), widths)
	for i := 3; i < dim; i++ {
		window := 0
		for j := range 4 {
			window |= int(codes[i-j]&1) << j
		}
		subset := 2*((window^window>>1^window>>3)&1) + window>>2&1
		require.Equal(t, trellis.Levels(3)[4*int(codes[i]>>1)+subset], y[i])
	}
}

func TestTile_RoundTrip(t *testing.T) {
	cells := []uint8{6, 5, 4, 3, 0, 2, 1}
	widths := trellis.RowWidths(cells)
	require.Equal(t, 32*21, trellis.TileBytes(cells))
	tile := make([]byte, trellis.TileBytes(cells))
	rng := rand.New(rand.NewPCG(1, 1))
	rows := make([][]uint8, trellis.TileRows)
	for _, again := range []bool{false, true} { // over other codes
		for r := range rows {
			rows[r] = make([]uint8, len(widths))
			for i, b := range widths {
				rows[r][i] = uint8(rng.IntN(1 << b))
			}
			require.NoError(t, trellis.PutRow(tile, cells, r, rows[r]))
		}
		for r := range rows {
			got := make([]uint8, len(widths))
			require.NoError(t, trellis.Row(got, tile, cells, r))
			require.Equal(t, rows[r], got, "row %d, again %v", r, again)
		}
	}
	require.Equal(t, uint16(rows[3][0]&1), trellis.Path(tile, 3)&1)
	other := slices.Clone(tile)
	require.NoError(t, trellis.CopyRow(other, 2, tile, 9, cells))
	for r := range rows {
		want, got := rows[r], make([]uint8, len(widths))
		if r == 2 {
			want = rows[9]
		}
		require.NoError(t, trellis.Row(got, other, cells, r))
		require.Equal(t, want, got)
	}
	require.ErrorIs(t, trellis.CopyRow(other, 2, tile[1:], 9, cells), quant.ErrShape)
}

func TestBadArguments(t *testing.T) {
	x, codes := make([]float32, 16), make([]uint8, 16)
	require.ErrorIs(t, trellis.Encode(codes[:3], x, uniform(16, 1)), quant.ErrShape)
	require.ErrorIs(t, trellis.Encode(codes, x, uniform(15, 1)), quant.ErrShape)
	require.ErrorIs(t, trellis.Encode(codes, x, uniform(16, 7)), quant.ErrUnsupported)
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e30} {
		x[5] = float32(bad)
		require.ErrorIs(t, trellis.Encode(codes, x, uniform(16, 2)), quant.ErrRange)
	}
	codes[3] = 4
	require.ErrorIs(t, trellis.Decode(x, codes, uniform(16, 2)), quant.ErrCorrupt)
	require.ErrorIs(t, trellis.Decode(x, codes[:3], uniform(16, 2)), quant.ErrShape)
	require.ErrorIs(t, trellis.PutRow(make([]byte, 64), []uint8{2}, 0, codes), quant.ErrRange)
	require.ErrorIs(t, trellis.PutRow(make([]byte, 63), []uint8{2}, 0, codes), quant.ErrShape)
	require.ErrorIs(t, trellis.PutRow(make([]byte, 64), []uint8{2}, 16, codes), quant.ErrShape)
	require.ErrorIs(t, trellis.Row(codes, make([]byte, 64), []uint8{9}, 0), quant.ErrUnsupported)
}
