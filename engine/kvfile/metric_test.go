// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// widened returns a capture of f16 as one of float32, with the values of each tensor of rows edited.
func widened(t testing.TB, src *capture.Source, edit func(name string, x []float32)) *capture.Source {
	t.Helper()
	var decls []capture.Decl
	for _, x := range src.Tensors() {
		if x.DTypeName == "F16" {
			x.DTypeName = "F32"
		}
		decls = append(decls, capture.Decl{Name: x.Name, DTypeName: x.DTypeName, Shape: x.Shape})
	}
	m := &memory{}
	w, err := capture.NewWriter(m, decls, src.Info().Metadata)
	require.NoError(t, err)
	for _, x := range src.Tensors() {
		b := raw(t, src, x.Name)
		if x.DTypeName == "F16" {
			rows := make([]float32, len(b)/2)
			for i := range rows {
				rows[i] = quant.F16ToF32(binary.LittleEndian.Uint16(b[2*i:]))
			}
			edit(x.Name, rows)
			b = make([]byte, 4*len(rows))
			for i, v := range rows {
				binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
			}
		}
		require.NoError(t, w.WriteAt(x.Name, 0, b))
	}
	require.NoError(t, w.Close())
	out, err := capture.New("widened", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return out
}

// side returns the side that a tensor of a layer belongs to: k, v, q, or "".
func sideOf(name string) string {
	at := strings.LastIndexByte(name, '.')
	return strings.TrimSuffix(name[at+1:], "_next")
}

// Rotary pairs of K that are scaled where those of queries are scaled back leave attention as it is. On a real
// capture they leave its errors and the predicted ones about as they are too: means, late sinks, the metric and
// merged rows are decided in coordinates that do not see such scales.
func TestMetric_ScaledPairsOfACapture(t *testing.T) {
	be, src := openCPU(t), open(t, kvFile)
	scaled := func(scales ...float32) *capture.Source {
		return widened(t, src, func(name string, x []float32) {
			for i := range x {
				by := scales[src.Info().Geometry.Rope.Pair(i%64)%len(scales)]
				switch sideOf(name) {
				case "k":
					x[i] *= by
				case "q":
					x[i] /= by
				}
			}
		})
	}
	targets := []string{"bits=2.25", "bits=4.25"}
	if testing.Short() {
		targets = targets[:1]
	}
	for _, target := range targets {
		plain := scaled(1)
		b, res := compress(t, plain, be, config(t, target+" form=hot"))
		want := measure(t, plain, be, b)
		for _, by := range [][]float32{{1 << 10, 1. / (1 << 10)}, {1, 1, 1, 1 << 10, 1, 1. / (1 << 10), 1}, {1. / (1 << 10)}} {
			src := scaled(by...)
			b, got := compress(t, src, be, config(t, target+" form=hot"))
			cmp := measure(t, src, be, b)
			t.Logf("%s %g: predicted %.5f, measured %.5f; plain %.5f, %.5f", target, by, got.Predicted, cmp.FutureError, res.Predicted, want.FutureError)
			require.Less(t, got.Predicted, 1.25*res.Predicted, "%s %g", target, by)
			require.Less(t, cmp.FutureError, 1.25*want.FutureError, "%s %g", target, by)
		}
	}
}

// Pairs of K that are scaled up where those of queries are scaled down leave attention as it is. With the metric,
// they leave its errors as they are too.
func TestMetric_ScaledPairs(t *testing.T) {
	const tokens, config = 1024, "bits=3 metric=true levels=full"
	rope := quant.Rope{Layout: quant.RopeHalf, RotaryDim: 24, Theta: 1e4}
	scaled := func(x []float32, by float32) {
		for i := range x {
			if p := rope.Pair(i % 32); p == 1 || p == 7 || p == 13 {
				x[i] *= by
			}
		}
	}
	make := func(by float32) *kvfile.Memory {
		m := shifted(tokens, 4)
		m.Geometry.Rope = rope
		for l := range m.K {
			scaled(m.K[l], by)
			scaled(m.Q[l], 1/by)
		}
		return m
	}
	const up = 1 << 10
	want, plain := packedError(t, make(1), config)
	require.Nil(t, reader(t, plain).Header().Metrics, "it would not pay")
	queries := func(q []float32) { scaled(q, 1.0/up) }
	got, file := packedErrorOf(t, make(up), config, queries)
	for _, m := range reader(t, file).Header().Metrics {
		require.NotNil(t, m)
	}
	require.Less(t, got, 1.25*want)
	off, _ := packedErrorOf(t, make(up), "bits=3 metric=false levels=full", queries)
	t.Logf("error %.4f, scaled %.4f with the metric, %.4f without", want, got, off)
	require.Greater(t, off, 2*got)

	// Decompressed rows are out of the metric.
	src := decompress(t, file)
	k, sum, ref := raw(t, src, "layers.0.k"), 0.0, 0.0
	for i, v := range make(up).K[0] {
		bits := uint32(k[4*i]) | uint32(k[4*i+1])<<8 | uint32(k[4*i+2])<<16 | uint32(k[4*i+3])<<24
		e := float64(math.Float32frombits(bits) - v)
		sum, ref = sum+e*e, ref+float64(v)*float64(v)
	}
	require.Less(t, sum/ref, 0.1)
}

// Channels of queries that are dead in all of a capture may live later: the metric bounds what errors of K then cost.
func TestMetric_DeadQueries(t *testing.T) {
	const tokens = 600
	m := shifted(tokens, 4)
	for _, q := range m.Q {
		for i := range q {
			if i%32 > 2 {
				q[i] = 0
			}
		}
	}
	const config = "k=lm2+len+s8 v=lm2+len+s8"
	got, file := packedError(t, m, config) // by queries that use all channels
	require.NotNil(t, reader(t, file).Header().Metrics)
	off, _ := packedError(t, m, config+" metric=false")
	t.Logf("error %.3f with the metric, %.3f without", got, off)
	require.Less(t, got, 4*off)
}

// constantInK returns the capture with a constant of rms times the RMS of its rows in all rows of K.
func constantInK(t testing.TB, src *capture.Source, rms float64) *capture.Source {
	return widened(t, src, func(name string, x []float32) {
		if sideOf(name) != "k" {
			return
		}
		heads, dim := src.Info().Geometry.KVHeads, src.Info().Geometry.HeadDim
		rng := rand.New(rand.NewPCG(uint64(name[7]), 7)) // the same for the tokens that follow
		for rows := range slices.Chunk(x, len(x)/heads) {
			var sum float64
			for _, v := range rows {
				sum += float64(v) * float64(v)
			}
			size := rms * math.Sqrt(sum/float64(len(rows)))
			for d := range dim {
				c := float32(size * rng.NormFloat64())
				for i := d; i < len(rows); i += dim {
					rows[i] += c
				}
			}
		}
	})
}

// A constant that was added to K behind the position embedding costs an archive its bytes and no precision, with a
// basis of a profile and with one of the file. Captures as they are lose no byte to that.
func TestArchive_ConstantInK(t *testing.T) {
	be, src := openCPU(t), open(t, kvFile)
	p, err := profile.Open("../../testdata/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	constants := []float64{0, 1, 4, 16, 1000}
	if testing.Short() {
		constants = []float64{0, 16}
	}
	for _, own := range []bool{true, false} {
		cfg := config(t, "bits=2.25 form=archive")
		var profiles []*profile.Profile
		if !own {
			cfg.Profile, profiles = p, []*profile.Profile{p}
		}
		var plain float64
		for _, rms := range constants {
			src := constantInK(t, src, rms)
			b, res := compress(t, src, be, cfg)
			r := reader(t, b)
			records(t, b, func(rec *container.Record) {
				require.Equal(t, rms > 0, rec.Archive[0] == 2, "own %v, %g RMS", own, rms)
			})
			cmp, err := report.Compare(context.Background(), r, src, report.Options{Backend: be, Profiles: profiles})
			require.NoError(t, err)
			t.Logf("own %v, %g RMS: error %.5f, predicted %.5f", own, rms, cmp.FutureError, res.Predicted)
			require.Less(t, cmp.FutureError, 2*res.Predicted)
			require.Less(t, res.Predicted, 3*cmp.FutureError)
			switch {
			case rms == 0:
				plain = cmp.FutureError
			case rms < 1000:
				require.Less(t, cmp.FutureError, 2*plain)
			default:
				require.Less(t, cmp.FutureError, 0.05)
			}
		}
	}
}

// A constant in K costs hot form the bytes of its means and little precision on a real capture too. Sinks are coded
// without the mean then, and late sinks are no longer told by their lengths.
func TestMean_ConstantInKOfACapture(t *testing.T) {
	be, src := openCPU(t), open(t, kvFile)
	var want float64
	for _, rms := range []float64{0, 16} {
		src := constantInK(t, src, rms)
		b, res := compress(t, src, be, config(t, "bits=2.25 form=hot"))
		cmp := measure(t, src, be, b)
		t.Logf("%g RMS: error %.5f, predicted %.5f", rms, cmp.FutureError, res.Predicted)
		if rms == 0 {
			want = cmp.FutureError
			continue
		}
		require.Less(t, cmp.FutureError, 1.6*want)
		require.Less(t, res.Predicted, 1.6*want)
	}
}
