// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// odd says how rows differ from well-scaled ones: value = 2^scale * (mean_j + noise), one row of every
// fortieth, and at least one, times outlier.
type odd struct {
	scale   int     // exponent of 2
	outlier float64 // 1: none
	mean    float64 // of columns, in deviations of the noise, alternating in sign
}

func (o odd) String() string {
	return fmt.Sprintf("scale 2^%d, outlier %g, means %g", o.scale, o.outlier, o.mean)
}

// isOutlier tells the rows that are out of scale: never the first one.
func (o odd) isOutlier(row, rows int) bool {
	return o.outlier != 1 && (row%40 == 7 || rows <= 7 && row == rows-1 && rows > 1)
}

func outliersOf(rows int, o odd) (n int) {
	for r := range rows {
		if o.isOutlier(r, rows) {
			n++
		}
	}
	return n
}

// oddRows makes rows in float64, as they would be in a type without limits.
func oddRows(rng *rand.Rand, rows, dim int, o odd) (x []float64, noise float64) {
	x = make([]float64, rows*dim)
	for i := range x {
		v := rng.NormFloat64()
		if o.isOutlier(i/dim, rows) {
			v *= o.outlier
		}
		m := o.mean * (1 + float64(i%dim)/float64(dim))
		if i%2 == 1 {
			m = -m
		}
		x[i] = math.Ldexp(m+v, o.scale)
	}
	return x, math.Ldexp(1, o.scale)
}

// stored rounds values to an element type and returns its bytes; false where one leaves its range.
func stored(x []float64, dt quant.DType) (raw []byte, values []float64, ok bool) {
	rows := quant.Rows{Dim: len(x), Data: make([]float32, len(x))}
	for i, v := range x {
		rows.Data[i] = float32(v)
		if math.Abs(v) > math.MaxFloat32 {
			return nil, nil, false
		}
	}
	c := quant.Coding{Format: dt.Format()}
	raw = make([]byte, c.PackedBytes(1, len(x)))
	if quant.Encode(raw, c, rows, 0) != nil {
		return nil, nil, false
	}
	back := quant.Rows{Dim: len(x), Data: make([]float32, len(x))}
	if quant.Decode(back, c, raw, 0) != nil {
		return nil, nil, false
	}
	values = make([]float64, len(x))
	for i, v := range back.Data {
		values[i] = float64(v)
	}
	return raw, values, true
}

// rowsCapture is a capture of one tensor of rows.
func rowsCapture(t testing.TB, raw []byte, dt quant.DType, rows, dim int) *capture.Source {
	t.Helper()
	var m memory
	w, err := capture.NewWriter(&m, []capture.Decl{{Name: "x", DTypeName: dt.String(),
		Shape: []int64{int64(rows), int64(dim)}}}, nil)
	require.NoError(t, err)
	require.NoError(t, w.WriteAt("x", 0, raw))
	require.NoError(t, w.Close())
	src, err := capture.New("rows", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return src
}

// valuesOf decodes a tensor of a capture.
func valuesOf(t testing.TB, src *capture.Source, name string, dt quant.DType) []float64 {
	b := raw(t, src, name)
	rows := quant.Rows{Dim: len(b) / dt.Size(), Data: make([]float32, len(b)/dt.Size())}
	require.NoError(t, quant.Decode(rows, quant.Coding{Format: dt.Format()}, b, 0))
	x := make([]float64, len(rows.Data))
	for i, v := range rows.Data {
		x[i] = float64(v)
	}
	return x
}

// rowErrors compresses rows and returns the errors, in deviations of the noise, as root mean squares over
// the ordinary rows and relative to the outlier over the others.
func rowErrors(t testing.TB, x []byte, want []float64, dt quant.DType, rows, dim int, o odd,
	cfg kvfile.Config) (ordinary, outliers float64, size int64, err error) {
	src := rowsCapture(t, x, dt, rows, dim)
	var file bytes.Buffer
	res, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: openCPU(t)})
	if err != nil {
		return 0, 0, 0, err
	}
	got := valuesOf(t, restored(t, file.Bytes()), "x", dt)
	var n, m float64
	for r := range rows {
		for i := r * dim; i < (r+1)*dim; i++ {
			d := math.Ldexp(got[i]-want[i], -o.scale)
			if o.isOutlier(r, rows) {
				outliers, m = outliers+d*d/(o.outlier*o.outlier), m+1
			} else {
				ordinary, n = ordinary+d*d, n+1
			}
		}
	}
	return math.Sqrt(ordinary / max(n, 1)), math.Sqrt(outliers / max(m, 1)), res.Bytes, nil
}

// precision is the relative precision of an element type: half the distance of neighbours of 1.
func precision(dt quant.DType) float64 {
	switch dt {
	case quant.Float16:
		return math.Ldexp(1, -11)
	case quant.BFloat16:
		return math.Ldexp(1, -8)
	}
	return math.Ldexp(1, -22) // not all digits of float32: sums over components round
}

// kvCapture is a capture of one layer of one KV head, two query heads where q is not nil. K is not turned.
func kvCapture(t testing.TB, k, v, q []byte, dt quant.DType, tokens, dim int) *capture.Source {
	t.Helper()
	g := quant.Geometry{Layers: 1, Heads: 2, KVHeads: 1, HeadDim: dim, HeadDimV: dim}
	shape := func(heads int) []int64 { return []int64{int64(heads), int64(tokens), int64(dim)} }
	decls := []capture.Decl{{Name: "layers.0.k", DTypeName: dt.String(), Shape: shape(1)},
		{Name: "layers.0.v", DTypeName: dt.String(), Shape: shape(1)}}
	if q != nil {
		decls = append(decls, capture.Decl{Name: "layers.0.q", DTypeName: dt.String(), Shape: shape(2)})
	}
	var m memory
	w, err := capture.NewWriter(&m, decls, capture.KVMetadata(g, "synthetic", 0))
	require.NoError(t, err)
	for i, raw := range [][]byte{k, v, q} {
		if raw != nil {
			require.NoError(t, w.WriteAt(decls[i].Name, 0, raw))
		}
	}
	require.NoError(t, w.Close())
	src, err := capture.New("synthetic", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return src
}

// unitCases are rows that differ from well-scaled ones in one way, or in all.
func unitCases(short, means bool) (cases []odd) {
	scales, outliers, columns := []int{0, -100, -60, -14, 9, 60, 100}, []float64{1, 30, 1e3, 1e5, 1e8}, []float64{0, 1, 100, 1e4, 1e6}
	if short {
		scales, outliers, columns = []int{0, -100, 60}, []float64{1, 30, 1e8}, []float64{0, 100, 1e6}
	}
	if !means {
		columns = []float64{0}
	}
	for _, scale := range scales {
		for _, out := range outliers {
			for _, mean := range columns {
				cases = append(cases, odd{scale, out, mean})
			}
		}
	}
	return cases
}

// TestCompress_RowsOfAnyUnit: what the rows are measured in, rows of another size among them and constants
// of their columns do not matter: the errors are at most 4 times those of the same rows well scaled, or what
// the element type itself lost, or the row is named. The means of hot form are left out: it takes none off.
func TestCompress_RowsOfAnyUnit(t *testing.T) {
	const dim = 32
	for _, form := range []string{"archive", "hot"} {
		for _, dt := range []quant.DType{quant.Float32, quant.BFloat16, quant.Float16} {
			for _, rows := range []int{1, 2, 3, 8, 40, 300} {
				for _, bits := range []float64{3, 6, 12} {
					cfg := config(t, fmt.Sprintf("bits=%g form=%s", bits, form))
					wellScaled := odd{0, 1, 0}
					x, _ := oddRows(rand.New(rand.NewPCG(1, uint64(rows))), rows, dim, wellScaled)
					raw0, want0, _ := stored(x, dt)
					base, _, size0, err := rowErrors(t, raw0, want0, dt, rows, dim, wellScaled, cfg)
					if errors.Is(err, quant.ErrBudget) {
						continue
					}
					require.NoError(t, err)
					for _, o := range unitCases(testing.Short(), form == "archive") {
						x, _ := oddRows(rand.New(rand.NewPCG(1, uint64(rows))), rows, dim, o)
						raw, want, ok := stored(x, dt)
						lost := o.mean * 2 * precision(dt)
						if !ok || lost > 0.25 || dt == quant.Float16 && o.scale < -14 {
							continue // the element type holds no such rows
						}
						name := fmt.Sprintf("%s, %v, %d rows, %g bits, %v", form, dt, rows, bits, o)
						e, eOut, size, err := rowErrors(t, raw, want, dt, rows, dim, o, cfg)
						if errors.Is(err, quant.ErrRange) {
							require.Greater(t, math.Ldexp(max(o.outlier, 1, o.mean), o.scale), 1e33, name)
							require.ErrorContains(t, err, "token", name)
							continue
						}
						require.NoError(t, err, name)
						if o.outlier == 1 && o.mean == 0 { // in another unit alone
							require.InDelta(t, size0, size, 0.01*float64(size0)+64, "%s: bytes", name)
						}
						base := base
						if form == "hot" && o.outlier != 1 { // which takes its exact rows from the bytes of the others
							less := cfg
							less.Bits -= float64(8*dt.Size()*outliersOf(rows, o)) / float64(rows)
							base, _, _, err = rowErrors(t, raw0, want0, dt, rows, dim, wellScaled, less)
							require.NoError(t, err, name)
						}
						require.LessOrEqual(t, e, 4*max(base, lost)+1e-9, name)
						require.LessOrEqual(t, eOut, 4*max(base, lost)+1e-9, "%s: outliers", name)
					}
				}
			}
		}
	}
}

// TestLossless_RowsOfAnyUnit: every bit comes back, whatever the rows are like.
func TestLossless_RowsOfAnyUnit(t *testing.T) {
	const dim = 32
	cfg := config(t, "lossless=true form=archive")
	for _, dt := range []quant.DType{quant.Float32, quant.BFloat16, quant.Float16} {
		for _, rows := range []int{1, 3, 40, 300} {
			for _, o := range unitCases(true, true) {
				x, _ := oddRows(rand.New(rand.NewPCG(1, uint64(rows))), rows, dim, o)
				b, _, ok := stored(x, dt)
				if !ok {
					continue
				}
				file, _ := compress(t, rowsCapture(t, b, dt, rows, dim), openCPU(t), cfg)
				require.True(t, bytes.Equal(b, raw(t, restored(t, file), "x")), "%v, %d rows, %v", dt, rows, o)
			}
		}
	}
}

// TestCompress_KVOfAnyUnit is the same for a cache. The unit of K is what attention sees: there it is a weight.
func TestCompress_KVOfAnyUnit(t *testing.T) {
	const dim, dt = 32, quant.Float32
	ks := []odd{{0, 1, 0}, {0, 30, 0}, {0, 1e3, 0}, {0, 1e8, 0}}
	vs := []odd{{0, 1, 0}, {-100, 1, 0}, {100, 1, 0}, {0, 30, 0}, {0, 1e3, 0}, {0, 1e8, 0}, {-60, 1e4, 0}}
	for _, form := range []string{"hot", "archive"} {
		if form == "archive" {
			vs = append(vs, odd{0, 1, 100}, odd{0, 1, 1e6}, odd{30, 1e5, 0})
			ks = append(ks, odd{0, 1, 100}, odd{0, 1, 1e6})
		}
		for _, withQ := range []bool{true, false} {
			for _, bits := range []float64{3, 6} {
				var base [2]float64
				for _, ko := range ks {
					for _, vo := range vs {
						if testing.Short() && ko != ks[0] && vo != vs[0] {
							continue
						}
						name := fmt.Sprintf("%s, queries %v, %g bits, K %v, V %v", form, withQ, bits, ko, vo)
						e := kvErrors(t, dim, dt, withQ, [2]odd{ko, vo}, config(t, fmt.Sprintf("bits=%g form=%s sinks=0", bits, form)))
						if ko == ks[0] && vo == vs[0] {
							base = e
						}
						most := 4.0
						if ko != ks[0] && vo != vs[0] {
							most = 8 // both move the prices that share out the bytes between K and V
						}
						for side, o := range []odd{ko, vo} {
							require.LessOrEqual(t, e[side], most*max(base[0], base[1], o.mean*2*precision(dt)), "%s: side %d", name, side)
						}
					}
				}
			}
		}
	}
}

// kvErrors compresses a cache of 300 tokens and returns the errors of K and V, as rowErrors does of ordinary rows.
func kvErrors(t *testing.T, dim int, dt quant.DType, withQ bool, odds [2]odd, cfg kvfile.Config) (e [2]float64) {
	const tokens = 300
	rng := rand.New(rand.NewPCG(1, 2))
	var raws [3][]byte
	var want [2][]float64
	for side, o := range odds {
		x, _ := oddRows(rng, tokens, dim, o)
		raws[side], want[side], _ = stored(x, dt)
	}
	if withQ {
		x, _ := oddRows(rng, 2*tokens, dim, odd{0, 1, 0})
		raws[2], _, _ = stored(x, dt)
	}
	var file bytes.Buffer
	src := kvCapture(t, raws[0], raws[1], raws[2], dt, tokens, dim)
	_, err := kvfile.Compress(context.Background(), src, &file, kvfile.Options{Config: &cfg, Backend: openCPU(t)})
	require.NoError(t, err, "%v", odds)
	back := restored(t, file.Bytes())
	for side, o := range odds {
		got, n := valuesOf(t, back, []string{"layers.0.k", "layers.0.v"}[side], dt), 0.0
		for i := range got {
			if !o.isOutlier(i/dim, tokens) {
				d := math.Ldexp(got[i]-want[side][i], -o.scale)
				e[side], n = e[side]+d*d, n+1
			}
		}
		e[side] = math.Sqrt(e[side] / n)
	}
	return e
}

// TestArchive_TensorsOfUnlikeScale: each tensor has the same relative error, whatever the others are like.
func TestArchive_TensorsOfUnlikeScale(t *testing.T) {
	const rows, dim = 300, 32
	var m memory
	decl := func(name string) capture.Decl {
		return capture.Decl{Name: name, DTypeName: "F32", Shape: []int64{rows, dim}}
	}
	w, err := capture.NewWriter(&m, []capture.Decl{decl("large"), decl("small")}, nil)
	require.NoError(t, err)
	scales := map[string]odd{"large": {0, 1, 0}, "small": {-7, 1, 0}}
	want := map[string][]float64{}
	for name, o := range scales {
		x, _ := oddRows(rand.New(rand.NewPCG(3, uint64(len(name)))), rows, dim, o)
		raw, values, _ := stored(x, quant.Float32)
		want[name] = values
		require.NoError(t, w.WriteAt(name, 0, raw))
	}
	require.NoError(t, w.Close())
	src, err := capture.New("two", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	b, _ := compress(t, src, openCPU(t), config(t, "bits=3 form=archive"))
	back := restored(t, b)
	e := map[string]float64{}
	for name, x := range want {
		var sum, energy float64
		for i, v := range valuesOf(t, back, name, quant.Float32) {
			sum, energy = sum+(v-x[i])*(v-x[i]), energy+x[i]*x[i]
		}
		e[name] = math.Sqrt(sum / energy)
	}
	require.Less(t, e["small"], 1.1*e["large"])
	require.Less(t, e["large"], 1.1*e["small"])
}

// TestArchive_ProfileOfAnotherUnit: bases that were calibrated on a cache serve one whose V is of another unit, or
// has channels that never varied where the profile was made.
func TestArchive_ProfileOfAnotherUnit(t *testing.T) {
	const tokens, dim, dt = 300, 32, quant.Float32
	made := func(v odd, dead int) (*capture.Source, []float64) {
		rng := rand.New(rand.NewPCG(4, 5))
		k, _ := oddRows(rng, tokens, dim, odd{0, 1, 0})
		x, _ := oddRows(rng, tokens, dim, v)
		q, _ := oddRows(rng, 2*tokens, dim, odd{0, 1, 0})
		for i := range x {
			if i%dim < dead {
				x[i] = 0
			}
		}
		rawK, _, _ := stored(k, dt)
		rawV, want, _ := stored(x, dt)
		rawQ, _, _ := stored(q, dt)
		return kvCapture(t, rawK, rawV, rawQ, dt, tokens, dim), want
	}
	calib, _ := made(odd{0, 1, 0}, 3)
	p := calibrated(t, calib)
	errorOf := func(v odd) float64 {
		src, want := made(v, 0)
		cfg := config(t, "bits=4 form=archive")
		cfg.Profile = p
		b, _ := compress(t, src, openCPU(t), cfg)
		var e, ref float64
		for i, x := range valuesOf(t, restored(t, b, p), "layers.0.v", dt) {
			e, ref = e+(x-want[i])*(x-want[i]), ref+want[i]*want[i]
		}
		return math.Sqrt(e / ref)
	}
	same := errorOf(odd{0, 1, 0})
	require.Less(t, same, 0.3, "channels that the profile never saw vary")
	for _, scale := range []int{-60, -9, 5, 40} {
		require.Less(t, errorOf(odd{scale, 1, 0}), 4*same, "V times 2^%d", scale)
	}
}

// TestCompress_ManyRowsApart: where a third of the rows are far longer than the others, budgets are met and the
// others are not lost.
func TestCompress_ManyRowsApart(t *testing.T) {
	const rows, dim, dt = 300, 32, quant.Float32
	x, _ := oddRows(rand.New(rand.NewPCG(8, 9)), rows, dim, odd{0, 1, 0})
	for i := range x {
		if i/dim%3 == 1 {
			x[i] *= 1e6
		}
	}
	b, want, _ := stored(x, dt)
	for _, form := range []string{"archive", "hot"} {
		file, res := compress(t, rowsCapture(t, b, dt, rows, dim), openCPU(t), config(t, "bits=6 form="+form))
		require.LessOrEqual(t, res.BitsPerValue, 6.0)
		var e, n float64
		for i, v := range valuesOf(t, restored(t, file), "x", dt) {
			if i/dim%3 != 1 {
				e, n = e+(v-want[i])*(v-want[i]), n+1
			}
		}
		require.Less(t, math.Sqrt(e/n), 0.6, form)
	}
}
