// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// With predictors a profile makes better files of the same size; files made without them stay readable with it.
func TestPredicted_BetterAtTheSameSize(t *testing.T) {
	long(t)
	ctx := context.Background()
	src, be := open(t, kvFile), openCPU(t)
	plain := calibrated(t, src)
	p, err := tune.WithPredictors(ctx, []*capture.Source{src}, plain, nil)
	require.NoError(t, err)
	require.NotEqual(t, plain.ArchiveID(), p.ArchiveID())
	made := func(p *profile.Profile, set string) []byte {
		cfg := config(t, set)
		cfg.Profile = p
		b, _ := compress(t, src, be, cfg)
		return b
	}
	before, after := made(plain, "bits=1.2 form=archive"), made(p, "bits=1.2 form=archive")
	require.Equal(t, p.ArchiveID(), profile.ID(reader(t, after).Header().Profile))
	for _, at := range []int{2, 3, 5} { // by themselves, in any order
		rec, err := reader(t, after).ReadRecord(at)
		require.NoError(t, err)
		require.EqualValues(t, 3, rec.Archive[0], "record %d is not predicted", at)
	}
	var read bytes.Buffer // through a file
	_, err = p.WriteTo(&read)
	require.NoError(t, err)
	again, err := profile.Read("p", bytes.NewReader(read.Bytes()), int64(read.Len()), profile.Limits{})
	require.NoError(t, err)
	require.Equal(t, raw(t, restored(t, after, p), "layers.9.v"), raw(t, restored(t, after, again), "layers.9.v"))
	require.NoError(t, kvfile.VerifyRows(ctx, reader(t, after), kvfile.Options{Profiles: []*profile.Profile{again}}))
	// The error of K and V against the capture, at the same bytes.
	distance := func(b []byte, name string) (sum float64) {
		x, y := values(t, src, name), values(t, restored(t, b, p), name)
		for i := range x {
			d := float64(x[i]) - float64(y[i])
			sum += d * d
		}
		return sum
	}
	for _, name := range []string{"layers.9.v", "layers.19.k"} {
		x, y := distance(before, name), distance(after, name)
		t.Logf("%s: %.4f of the error without predictors", name, y/x)
		require.Less(t, y, 0.9*x, name)
	}
	// A profile without predictors does not decode it, and is named as what is missing.
	var missing *profile.MissingError
	_, err = kvfile.Decompress(ctx, reader(t, after), &memory{}, kvfile.Options{Profiles: []*profile.Profile{plain}})
	require.ErrorAs(t, err, &missing)
	require.Equal(t, p.ArchiveID(), missing.ID)
	// Files of stages are not predicted, and name the profile as before.
	staged := made(p, "bits=2 form=archive chunks=4")
	require.Equal(t, plain.ArchiveID(), profile.ID(reader(t, staged).Header().Profile))
	restored(t, staged, plain)
	// New bases take the predictors with them.
	fresh, err := tune.Calibrate(ctx, []*capture.Source{src}, be, p, nil)
	require.NoError(t, err)
	require.Empty(t, fresh.Tensors(profile.SectionPredictors))
	_, err = tune.WithPredictors(ctx, []*capture.Source{src}, empty(t, src), nil)
	require.ErrorIs(t, err, quant.ErrShape)
	_, err = tune.WithPredictors(ctx, nil, plain, nil)
	require.ErrorIs(t, err, quant.ErrShape)
	all, err := profile.Open("../../testdata/smollm2.kvprofile", profile.Limits{})
	require.NoError(t, err)
	_, err = tune.WithPredictors(ctx, []*capture.Source{src}, all, nil)
	require.ErrorIs(t, err, quant.ErrShape, "a capture of some layers")
}

func empty(t *testing.T, src *capture.Source) *profile.Profile {
	p, err := profile.New(src.Info().Model, src.Info().Geometry)
	require.NoError(t, err)
	return p
}

// values returns the values of a tensor of K or V.
func values(t *testing.T, src *capture.Source, name string) []float32 {
	var all []float32
	for _, l := range src.Info().Layers {
		for _, part := range []capture.Part{capture.K, capture.V} {
			x, ok := src.KV(l, part)
			require.True(t, ok)
			if x.Name() != name {
				continue
			}
			for h := range src.Info().Geometry.KVHeads {
				rows := make([]float32, x.Rows()*x.Dim())
				require.NoError(t, x.ReadF32(h, 0, x.Rows(), rows))
				all = append(all, rows...)
			}
		}
	}
	require.NotEmpty(t, all)
	return all
}
