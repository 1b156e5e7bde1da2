// SPDX-License-Identifier: Apache-2.0

package scan_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/scan"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// sections have every width, runs that follow a gap, and neighbours of every kind.
var sections = [][]uint8{
	{1}, {2}, {3}, {4}, {5}, {6}, {0}, {1, 1, 1}, {2, 2}, {3, 3, 3}, {4, 4}, {5, 5}, {6, 6},
	{6, 5, 4, 3, 2, 1, 0, 1, 0, 0, 2}, {4, 4, 4, 3, 3, 2, 2, 2, 2, 1}, {1, 2, 3, 4, 5, 6, 1, 3, 5, 2, 4, 6}, {},
}

// engines are those of all instruction sets of this machine.
func engines(t testing.TB) []*scan.Engine {
	t.Helper()
	var list []*scan.Engine
	have := scan.Supported()
	for _, isa := range have {
		e, err := scan.Open(scan.Options{ISA: isa})
		require.NoError(t, err)
		require.Equal(t, isa, e.ISA())
		list = append(list, e)
	}
	for _, isa := range []string{"avx2", "avx512"} {
		if strings.Contains(os.Getenv("KVIST_REQUIRE"), isa) {
			require.Contains(t, have, isa)
		}
	}
	return list
}

func gaussian(n int, seed uint64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// tiles returns coded rows, as the reference codes and packs them.
func tiles(t testing.TB, cells []uint8, n int) (packed []byte, rows [][]uint8) {
	t.Helper()
	widths, size := trellis.RowWidths(cells), trellis.TileBytes(cells)
	packed = make([]byte, n*size)
	for r := range n * trellis.TileRows {
		codes := make([]uint8, len(widths))
		require.NoError(t, trellis.Encode(codes, gaussian(len(widths), uint64(r)), widths))
		at := r / trellis.TileRows * size
		require.NoError(t, trellis.PutRow(packed[at:at+size], cells, r%trellis.TileRows, codes))
		rows = append(rows, codes)
	}
	return packed, rows
}

// Encode packs the bytes of the reference, whatever the values.
func TestEncode_Reference(t *testing.T) {
	for _, cells := range sections {
		s, err := scan.NewSection(cells)
		require.NoError(t, err)
		dim := s.Dim()
		x := gaussian(trellis.TileRows*dim, 3)
		for i := range x {
			switch i % 11 {
			case 3:
				x[i] = 0
			case 5:
				x[i] = float32(math.Round(float64(x[i]))) // ties
			case 7:
				x[i] *= 50
			}
		}
		want := make([]byte, trellis.TileBytes(cells))
		levels := make([]float32, len(x))
		for r := range trellis.TileRows {
			codes := make([]uint8, dim)
			row := x[r*dim : (r+1)*dim]
			require.NoError(t, trellis.Encode(codes, row, trellis.RowWidths(cells)))
			require.NoError(t, trellis.PutRow(want, cells, r, codes))
			require.NoError(t, trellis.Decode(levels[r*dim:(r+1)*dim], codes, trellis.RowWidths(cells)))
		}
		for _, e := range engines(t) {
			got, values := make([]byte, len(want)), make([]float32, len(x))
			require.NoError(t, e.Encode(got, s, x, values))
			require.Equal(t, want, got, "%s %v", e.ISA(), cells)
			require.Equal(t, levels, values, "%s %v", e.ISA(), cells)
			row := make([]float32, dim)
			require.NoError(t, e.Row(row, s, got, 9))
			require.Equal(t, levels[9*dim:10*dim], row)
		}
	}
}

// wantScores computes scores from codes as the package comment says.
func wantScores(cells []uint8, y []float32, rows [][]uint8) []float32 {
	widths := trellis.RowWidths(cells)
	out := make([]float32, len(rows))
	for r, codes := range rows {
		levels := make([]int, len(codes))
		state := 0
		for i, c := range codes {
			if b := int(widths[i]); b > 0 {
				scan, _ := trellis.ScanLevels(b)
				levels[i] = int(scan[4*int(c>>1)+trellis.Subset(state, int(c&1))]) - trellis.ScanZero
				state = trellis.Next(state, int(c&1))
			}
		}
		for lo := 0; lo < len(codes); {
			hi := lo
			for hi < len(codes) && widths[hi] == widths[lo] {
				hi++
			}
			if widths[lo] > 0 {
				var top float32
				for _, v := range y[lo:hi] {
					top = max(top, float32(math.Abs(float64(v))))
				}
				sum := 0
				for i := lo; i < hi && top > 0; i++ {
					sum += levels[i] * int(math.RoundToEven(float64(y[i]/(top/127))))
				}
				_, unit := trellis.ScanLevels(int(widths[lo]))
				out[r] += float32(float32(top/127*unit) * float32(sum))
			}
			lo = hi
		}
	}
	return out
}

func TestScores_Reference(t *testing.T) {
	const n = 3
	for _, cells := range sections {
		s, err := scan.NewSection(cells)
		require.NoError(t, err)
		packed, rows := tiles(t, cells, n)
		if s.TileBytes() == 0 {
			continue
		}
		for _, batch := range []int{1, 2, 3, 5, 8, 13} {
			qs := make([]*scan.Query, batch)
			var want []float32
			for k := range qs {
				y := gaussian(s.Dim(), uint64(100+k))
				if k == 4 {
					clear(y)
				}
				qs[k] = &scan.Query{}
				require.NoError(t, s.Prepare(qs[k], gaussian(s.Dim(), 1)))
				require.NoError(t, s.Prepare(qs[k], y)) // again, in the same memory
				want = append(want, wantScores(cells, y, rows)...)
			}
			for _, e := range engines(t) {
				got := make([]float32, len(want))
				require.NoError(t, e.Scores(got, s, packed, qs))
				require.Equal(t, want, got, "%s %v %d queries", e.ISA(), cells, batch)
			}
		}
	}
}

func TestFinish(t *testing.T) {
	const n = 5
	rng := rand.New(rand.NewPCG(1, 2))
	var table [256]float32
	for i := range table {
		table[i] = float32(rng.NormFloat64())
	}
	one, two := make([]byte, 16*n), make([]byte, 32*n)
	for i := range one {
		one[i] = byte(rng.IntN(256))
		binary.LittleEndian.PutUint16(two[2*i:], quant.F32ToBF16(float32(rng.NormFloat64())))
	}
	norms, scores := gaussian(16*n, 5), gaussian(16*n, 6)
	for _, f := range []scan.Factors{{Codes: one, Table: &table}, {Codes: two}} {
		for _, norm := range [][]float32{nil, norms} {
			for _, threshold := range []float32{float32(math.Inf(-1)), 0, 0.3, 100} {
				want := slices.Clone(scores)
				masks := make([]uint16, n)
				for i := range want {
					factor := quant.BF16ToF32(binary.LittleEndian.Uint16(two[2*i:]))
					if f.Table != nil {
						factor = table[one[i]]
					}
					want[i] = float32(want[i] * factor)
					if norm != nil {
						want[i] -= norm[i]
					}
					if want[i] > threshold {
						masks[i/16] |= 1 << (i % 16)
					}
				}
				for _, e := range engines(t) {
					got, m := slices.Clone(scores), make([]uint16, n)
					require.NoError(t, e.Finish(m, got, f, norm, threshold))
					require.Equal(t, want, got, e.ISA())
					require.Equal(t, masks, m, e.ISA())
				}
			}
		}
	}
}

func TestBadArguments(t *testing.T) {
	s, err := scan.NewSection([]uint8{2, 1})
	require.NoError(t, err)
	_, err = scan.NewSection([]uint8{7})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = scan.NewSection(make([]uint8, 5000))
	require.ErrorIs(t, err, quant.ErrUnsupported)
	_, err = scan.Open(scan.Options{ISA: "mmx"})
	require.ErrorIs(t, err, quant.ErrUnsupported)
	q := &scan.Query{}
	require.ErrorIs(t, s.Prepare(q, make([]float32, 31)), quant.ErrShape)
	require.ErrorIs(t, s.Prepare(q, slices.Repeat([]float32{float32(math.NaN())}, 32)), quant.ErrRange)
	require.NoError(t, s.Prepare(q, gaussian(32, 1)))
	tile := make([]byte, s.TileBytes())
	for _, e := range engines(t) {
		require.ErrorIs(t, e.Scores(make([]float32, 16), s, tile[1:], []*scan.Query{q}), quant.ErrShape)
		require.ErrorIs(t, e.Scores(make([]float32, 15), s, tile, []*scan.Query{q}), quant.ErrShape)
		require.ErrorIs(t, e.Scores(make([]float32, 16), s, tile, []*scan.Query{{}}), quant.ErrShape)
		require.ErrorIs(t, e.Encode(tile[1:], s, make([]float32, 512), nil), quant.ErrShape)
		require.ErrorIs(t, e.Encode(tile, s, make([]float32, 511), nil), quant.ErrShape)
		x := make([]float32, 512)
		x[300] = float32(math.Inf(1))
		require.ErrorIs(t, e.Encode(tile, s, x, nil), quant.ErrRange)
		x[300] = float32(math.NaN())
		require.ErrorIs(t, e.Encode(tile, s, x, nil), quant.ErrRange)
		require.ErrorIs(t, e.Finish(make([]uint16, 2), make([]float32, 16), scan.Factors{}, nil, 0), quant.ErrShape)
		require.ErrorIs(t, e.Row(x[:32], s, tile, 16), quant.ErrShape)
	}
}

// The scores of 4096 rows of 384 values. Rows a second are those of one query.
func BenchmarkScores(b *testing.B) {
	for width := uint8(1); width <= 4; width++ {
		cells := slices.Repeat([]uint8{width}, 24)
		s, err := scan.NewSection(cells)
		require.NoError(b, err)
		one, _ := tiles(b, cells, 1)
		packed := slices.Repeat(one, 256)
		for _, batch := range []int{1, 16, 64} {
			qs := make([]*scan.Query, batch)
			for k := range qs {
				qs[k] = &scan.Query{}
				require.NoError(b, s.Prepare(qs[k], gaussian(s.Dim(), uint64(k))))
			}
			scores := make([]float32, 4096*batch)
			for _, e := range engines(b) {
				b.Run(fmt.Sprintf("backend=%s/bits=%d/queries=%d", e.ISA(), width, batch), func(b *testing.B) {
					for b.Loop() {
						require.NoError(b, e.Scores(scores, s, packed, qs))
					}
					b.ReportMetric(float64(4096*batch)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrows/s")
				})
			}
		}
	}
}

// Encoding 16 rows of 384 values.
func BenchmarkEncode(b *testing.B) {
	for width := uint8(1); width <= 4; width++ {
		cells := slices.Repeat([]uint8{width}, 24)
		s, err := scan.NewSection(cells)
		require.NoError(b, err)
		x, tile := gaussian(16*384, 1), make([]byte, s.TileBytes())
		for _, e := range engines(b) {
			b.Run(fmt.Sprintf("backend=%s/bits=%d", e.ISA(), width), func(b *testing.B) {
				for b.Loop() {
					require.NoError(b, e.Encode(tile, s, x, nil))
				}
				b.ReportMetric(16*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mrows/s")
			})
		}
	}
}
