// SPDX-License-Identifier: Apache-2.0

package archiver_test

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/archiver"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

func open(t testing.TB) (*archiver.Archiver, quant.Geometry, *capture.Source) {
	t.Helper()
	p, err := profile.Open("../../testdata/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	s, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	a, err := archiver.New(p, p.Geometry())
	require.NoError(t, err)
	return a, p.Geometry(), s
}

// rows returns rows of a layer of the capture.
func rows(t testing.TB, s *capture.Source, g quant.Geometry, layer, first, n int) engine.ArchiveRows {
	t.Helper()
	r := engine.ArchiveRows{Layer: layer, First: int64(first), Tokens: n}
	for h := range g.KVHeads {
		for side, dst := range map[capture.Part]*[][]float32{capture.K: &r.K, capture.V: &r.V} {
			x, ok := s.KV(layer, side)
			require.True(t, ok)
			y := make([]float32, n*x.Dim())
			require.NoError(t, x.ReadF32(h, first, n, y))
			*dst = append(*dst, y)
		}
	}
	return r
}

func clone(r engine.ArchiveRows) engine.ArchiveRows {
	for _, x := range []*[][]float32{&r.K, &r.V} {
		*x = slices.Clone(*x)
		for h := range *x {
			(*x)[h] = slices.Clone((*x)[h])
		}
	}
	return r
}

// distance returns the relative squared error of K and V together.
func distance(a, b engine.ArchiveRows) float64 {
	var sum, all float64
	for h := range a.K {
		for _, x := range [][2][]float32{{a.K[h], b.K[h]}, {a.V[h], b.V[h]}} {
			for i, v := range x[0] {
				d := float64(v - x[1][i])
				sum, all = sum+d*d, all+float64(v)*float64(v)
			}
		}
	}
	return sum / all
}

// Rows of a model at the step for some bits take so many, and come back the closer the more they are.
func TestArchiver_Rate(t *testing.T) {
	a, g, s := open(t)
	layers := []int{0, 9, 19, 29}
	last := math.Inf(1)
	for _, bits := range []float64{1, 2, 3, 5} {
		var sample []engine.ArchiveRows
		for _, l := range layers {
			sample = append(sample, rows(t, s, g, l, 300, 64))
		}
		step, err := a.Step(sample, bits)
		require.NoError(t, err)
		bytes, values, worst := 0, 0, 0.0
		for _, l := range layers {
			x := rows(t, s, g, l, 256, 256)
			y := clone(x)
			p, err := a.Encode([]byte("before"), &y, step)
			require.NoError(t, err)
			require.Equal(t, "before", string(p[:6]))
			bytes, values = bytes+len(p)-6, values+x.Values()
			require.NoError(t, a.Decode(&y, p[6:]))
			worst = max(worst, distance(x, y))
			y = clone(x)
			again, err := a.Encode(nil, &y, step)
			require.NoError(t, err)
			require.Equal(t, p[6:], again)
		}
		got := 8 * float64(bytes) / float64(values)
		require.InDelta(t, bits, got, 0.15*bits+0.15)
		require.Less(t, worst, last)
		last = worst
	}
	require.Less(t, last, 0.001, "5 bits")
}

// Tokens of more weight come back closer.
func TestArchiver_Weights(t *testing.T) {
	a, g, s := open(t)
	errs := [2]float64{}
	x := rows(t, s, g, 9, 256, 256)
	y := clone(x)
	for range g.KVHeads {
		w := make([]float32, x.Tokens)
		for i := range w {
			w[i] = []float32{0.2, 1.4}[i%2]
		}
		y.Weights = append(y.Weights, w)
	}
	p, err := a.Encode(nil, &y, -20)
	require.NoError(t, err)
	require.NoError(t, a.Decode(&y, p))
	for h := range x.V {
		for i, v := range x.V[h] {
			d := float64(v - y.V[h][i])
			errs[i/g.HeadDimV%2] += d * d
		}
	}
	require.Less(t, 4*errs[1], errs[0])
}

// What cannot be coded, what is damaged and what is of another model is refused, by kind.
func TestArchiver_Refuses(t *testing.T) {
	a, g, s := open(t)
	for _, v := range []float32{float32(math.NaN()), float32(math.Inf(-1))} {
		x := rows(t, s, g, 19, 256, 32)
		x.V[1][70] = v
		y := clone(x)
		_, err := a.Encode(nil, &x, 0)
		require.ErrorIs(t, err, quant.ErrRange)
		_, err = a.Step([]engine.ArchiveRows{y}, 2)
		require.ErrorIs(t, err, quant.ErrRange)
	}
	x := rows(t, s, g, 19, 256, 32)
	p, err := a.Encode(nil, &x, -20)
	require.NoError(t, err)
	for n := 0; n < len(p); n += 1 + n/64 {
		require.ErrorIs(t, a.Decode(&x, p[:n:n]), quant.ErrCorrupt, "%d bytes", n)
	}
	prof, err := profile.Open("../../testdata/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	other := g
	other.KVHeads, other.Heads = 1, 3
	_, err = archiver.New(prof, other)
	require.ErrorIs(t, err, quant.ErrShape)
	empty, err := profile.New("m", g)
	require.NoError(t, err)
	_, err = archiver.New(empty, g)
	require.ErrorIs(t, err, quant.ErrShape)
	require.Contains(t, a.Name(), "archive 1 ")
}

// With a profile's predictors rows take fewer bytes at the same step; the name tells the two apart.
func TestArchiver_Predicts(t *testing.T) {
	plain, g, s := open(t)
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, be.Close()) })
	own, err := tune.Calibrate(t.Context(), []*capture.Source{s}, be, nil, nil)
	require.NoError(t, err)
	with, err := tune.WithPredictors(t.Context(), []*capture.Source{s}, own, nil)
	require.NoError(t, err)
	var names []string
	var sizes []int
	var step float64
	for _, p := range []*profile.Profile{own, with} {
		a, err := archiver.New(p, g)
		require.NoError(t, err)
		require.NotEqual(t, plain.Name(), a.Name())
		x := rows(t, s, g, 19, 256, 256)
		y := clone(x)
		if sizes == nil {
			step, err = a.Step([]engine.ArchiveRows{clone(x)}, 1.2)
			require.NoError(t, err)
		}
		b, err := a.Encode(nil, &y, step)
		require.NoError(t, err)
		require.NoError(t, a.Decode(&y, b))
		require.Less(t, distance(x, y), 0.3)
		names, sizes = append(names, a.Name()), append(sizes, len(b))
	}
	require.NotEqual(t, names[0], names[1])
	t.Log(sizes)
	require.Less(t, float64(sizes[1]), 0.9*float64(sizes[0]))
}
