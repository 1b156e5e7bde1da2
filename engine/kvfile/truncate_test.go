// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

const realCapture = "../../testdata/smollm2-sqlite-1k.safetensors"

func truncate(t testing.TB, b []byte, share float64, force bool) ([]byte, *kvfile.Truncated, error) {
	var out bytes.Buffer
	total := int64(share * float64(len(b)))
	res, err := kvfile.Truncate(context.Background(), reader(t, b), &out, total, kvfile.Options{Force: force})
	if err == nil {
		require.Equal(t, int64(out.Len()), res.Bytes)
		require.LessOrEqual(t, res.Bytes, total)
		require.NoError(t, kvfile.Verify(context.Background(), reader(t, out.Bytes()), kvfile.Options{}))
	}
	return out.Bytes(), res, err
}

func compareWith(t testing.TB, b []byte, src *capture.Source) *report.Comparison {
	cmp, err := report.Compare(context.Background(), reader(t, b), src, report.Options{Backend: openCPU(t)})
	require.NoError(t, err)
	return cmp
}

// A file of four streams is cut to 60 % of its size with at most twice the error of coding the original
// at that size, in what attention makes of it.
func TestTruncate_LikeCodingAfresh(t *testing.T) {
	src, be := firstTokens(t, open(t, realCapture), 1024, 9, 29), openCPU(t)
	all, some := []float64{0.99, 0.95, 0.9, 0.8, 0.7, 0.6}, []float64{0.99, 0.8, 0.6}
	bits := []string{"4", "2", "1"}
	if testing.Short() {
		some, all, bits = nil, []float64{0.99, 0.6}, []string{"2"}
	}
	for _, b := range bits {
		shares := some
		if b == "2" {
			shares = all
		}
		whole, _ := compress(t, src, be, config(t, "bits="+b+" form=archive chunks=4"))
		single, _ := compress(t, src, be, config(t, "bits="+b+" form=archive"))
		require.Less(t, compareWith(t, whole, src).FutureError, 1.15*compareWith(t, single, src).FutureError,
			"%s bits: what streams take", b)
		for _, share := range shares {
			cut, res, err := truncate(t, whole, share, false)
			require.NoError(t, err, "%s bits, %g", b, share)
			require.LessOrEqual(t, res.Predicted.Times(), 2.0)
			require.Zero(t, res.Heads)
			cfg := config(t, "bits=1 form=archive")
			cfg.Bits, cfg.Bytes = 0, int64(share*float64(len(whole)))
			afresh, _ := compress(t, src, be, cfg)
			got, want := compareWith(t, cut, src), compareWith(t, afresh, src)
			t.Logf("%s bits cut to %g: future attention %.3g %%, afresh %.3g %%; predicted %+v", b, share,
				100*got.FutureError, 100*want.FutureError, res.Predicted)
			require.Less(t, got.FutureError, 2*want.FutureError, "%s bits, %g", b, share)
			// All rows count the same here. Those of light tokens are dropped first, so these errors
			// grow more.
			require.Less(t, got.KError, 4*want.KError)
			require.Less(t, got.VError, 4*want.VError)
			for i := range got.Layers {
				require.Less(t, got.Layers[i].Worst.FutureHead.Error, 4*want.Layers[i].Worst.FutureHead.Error,
					"%s bits, %g, layer %d: a head is lost", b, share, i)
			}
		}
	}
}

// The first streams to go are of light tokens: sinks stay as they are.
func TestTruncate_SinksGoLast(t *testing.T) {
	src, be := open(t, realCapture), openCPU(t)
	whole, _ := compress(t, src, be, config(t, "bits=2 form=archive chunks=4"))
	cut, res, err := truncate(t, whole, 0.99, false)
	require.NoError(t, err)
	require.Positive(t, res.Dropped)
	before, after := restored(t, whole), restored(t, cut)
	changed := false
	sinks := config(t, "bits=2").Sinks
	for _, l := range before.Info().Layers {
		for _, side := range []capture.Part{capture.K, capture.V} {
			a, ok := before.KV(l, side)
			require.True(t, ok)
			b, _ := after.KV(l, side)
			for h := range a.Heads() {
				x, y := make([]float32, before.Info().Tokens*a.Dim()), make([]float32, before.Info().Tokens*a.Dim())
				require.NoError(t, a.ReadF32(h, 0, before.Info().Tokens, x))
				require.NoError(t, b.ReadF32(h, 0, before.Info().Tokens, y))
				require.Equal(t, x[:sinks*a.Dim()], y[:sinks*a.Dim()], "layer %d head %d", l, h)
				for i := range x {
					changed = changed || x[i] != y[i]
				}
			}
		}
	}
	require.True(t, changed)
}

// What would lose more than twice as much as coding afresh is refused with the predicted error, and
// written when forced. The prediction holds.
func TestTruncate_RefusesWhatIsTooCoarse(t *testing.T) {
	src, be := open(t, realCapture), openCPU(t)
	whole, _ := compress(t, src, be, config(t, "bits=2 form=archive chunks=4"))
	_, _, err := truncate(t, whole, 0.1, false)
	var coarse *kvfile.CoarseError
	require.ErrorAs(t, err, &coarse)
	require.ErrorIs(t, err, quant.ErrBudget)
	require.Greater(t, coarse.Predicted.Times(), 2.0)
	require.Positive(t, coarse.Heads)
	require.Contains(t, err.Error(), "the predicted error is")
	cut, res, err := truncate(t, whole, 0.1, true)
	require.NoError(t, err)
	require.Equal(t, coarse.Predicted, res.Predicted)
	require.Equal(t, coarse.Heads, res.Heads)
	worst := 0.0
	for _, l := range compareWith(t, cut, src).Layers {
		worst = max(worst, l.Worst.KHead.Error, l.Worst.VHead.Error)
	}
	require.Greater(t, worst, 0.2, "a lost head is not shown")
	_, _, err = truncate(t, whole, 0.001, true)
	require.ErrorIs(t, err, quant.ErrBudget, "more than there is to drop")
}

// A file of one stream has heads to lose and nothing else: not without being told to.
func TestTruncate_NoHeadSilently(t *testing.T) {
	src, be := small(t), openCPU(t)
	whole, _ := compress(t, src, be, config(t, "bits=3 form=archive"))
	for _, share := range []float64{0.999, 0.9, 0.5} {
		_, _, err := truncate(t, whole, share, false)
		var coarse *kvfile.CoarseError
		require.ErrorAs(t, err, &coarse, "%g", share)
		require.Positive(t, coarse.Heads)
		_, res, err := truncate(t, whole, share, true)
		require.NoError(t, err)
		require.Positive(t, res.Heads)
		require.Greater(t, res.Predicted.Error, res.Predicted.Now)
	}
	same, res, err := truncate(t, whole, 1, false)
	require.NoError(t, err)
	require.Equal(t, whole, same)
	require.Zero(t, res.Dropped)
}

// Errors grow as files shrink, sizes are met closely, and a file that was cut can be cut again, to the same
// as at once.
func TestTruncate_StepByStep(t *testing.T) {
	src, be := small(t), openCPU(t)
	whole, _ := compress(t, src, be, config(t, "bits=3 form=archive chunks=8"))
	last, predicted, b := 0.0, 0.0, whole
	for _, share := range []float64{1, 0.9, 0.8, 0.7, 0.6, 0.5} {
		cut, res, err := truncate(t, whole, share, false)
		require.NoError(t, err)
		require.Greater(t, float64(res.Bytes), 0.93*share*float64(len(whole)), "%g", share)
		cmp := compareWith(t, cut, src)
		require.GreaterOrEqual(t, cmp.KError+cmp.VError, last)
		require.GreaterOrEqual(t, res.Predicted.Error, predicted)
		last, predicted = cmp.KError+cmp.VError, res.Predicted.Error
		var again *kvfile.Truncated
		b, again, err = truncate(t, b, share*float64(len(whole))/float64(len(b)), false)
		require.NoError(t, err)
		require.InEpsilon(t, predicted, again.Predicted.Error, 0.3, "cut again")
	}
}

// Files of few records, of one tensor, of zeros: cut close to any size, or refused with a reason.
func TestTruncate_FewRecords(t *testing.T) {
	be := openCPU(t)
	src := synthetic(t, shape{1, 1, 200, 32, 32, quant.Float16, true}, quanttest.Gaussian, nil)
	whole, _ := compress(t, src, be, config(t, "bits=4 form=archive chunks=4"))
	for _, share := range []float64{0.95, 0.8, 0.6} {
		_, res, err := truncate(t, whole, share, false)
		require.NoError(t, err, "%g", share)
		require.Greater(t, float64(res.Bytes), 0.88*share*float64(len(whole)), "%g", share)
	}
	rows := open(t, "../../testdata/minilm-base-4096x384.npy")
	whole, _ = compress(t, rows, be, config(t, "bits=3 form=archive chunks=4"))
	for _, share := range []float64{0.95, 0.6} {
		cut, res, err := truncate(t, whole, share, false)
		require.NoError(t, err, "%g", share)
		require.Greater(t, float64(res.Bytes), 0.97*share*float64(len(whole)), "%g", share)
		cfg := config(t, "bits=1 form=archive")
		cfg.Bits, cfg.Bytes = 0, res.Bytes
		afresh, _ := compress(t, rows, be, cfg)
		require.Less(t, compareWith(t, cut, rows).KError, 2*compareWith(t, afresh, rows).KError, "%g", share)
	}
}

func TestPrediction_Times(t *testing.T) {
	require.Equal(t, 1.0, (&kvfile.Prediction{}).Times())
	require.Equal(t, 1.0, (&kvfile.Prediction{Error: 1, Afresh: 2}).Times())
	require.Equal(t, 3.0, (&kvfile.Prediction{Error: 3, Afresh: 1}).Times())
	require.True(t, math.IsInf((&kvfile.Prediction{Error: 3}).Times(), 1))
}
