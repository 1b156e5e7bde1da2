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
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// profileOf is a profile of the model of a capture: settings, and layer 0 that counts for much.
func profileOf(t testing.TB, src *capture.Source, params profile.Params,
	factor float32) *profile.Profile {
	t.Helper()
	g := src.Info().Geometry
	p, err := profile.New(src.Info().Model, g)
	require.NoError(t, err)
	p, err = p.WithParams(params, nil)
	require.NoError(t, err)
	n := g.Layers * g.KVHeads
	s := &profile.Sensitivity{K: make([]float32, n), V: make([]float32, n)}
	for i := range n {
		s.K[i], s.V[i] = 1, 1
		if i < g.KVHeads {
			s.K[i], s.V[i] = factor, factor
		}
	}
	p, err = p.WithSensitivity(s, nil)
	require.NoError(t, err)
	return p
}

func TestProfile_ActsAndIsNamed(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	base := config(t, "bits=2.75 importance=none")
	plain, _ := compress(t, src, be, base)

	// Factors of 1 change nothing but the header's field.
	with := base
	require.NoError(t, with.Apply(profileOf(t, src, nil, 1)))
	same, _ := compress(t, src, be, with)
	require.InDeltaSlice(t, layerBits(t, plain), layerBits(t, same), 0.01)

	// A layer that counts for much gets bits from the others.
	p := profileOf(t, src, profile.Params{"sinks": "8"}, 64)
	with = base
	require.NoError(t, with.Apply(p))
	require.Equal(t, 8, with.Sinks)
	b, res := compress(t, src, be, with)
	require.Equal(t, [32]byte(p.ID()), reader(t, b).Header().Profile)
	require.Equal(t, 8, reader(t, b).Header().Sinks)
	require.InDelta(t, 2.75, res.BitsPerValue, 0.03)
	before, after := layerBits(t, plain), layerBits(t, b)
	require.Greater(t, after[0], before[0]+0.3, "layer 0")
	require.Less(t, after[1]+after[2]+after[3], before[1]+before[2]+before[3]-0.3)
	rep, err := report.Build(context.Background(), reader(t, b), nil)
	require.NoError(t, err)
	require.Equal(t, p.ID().Full(), rep.Profile)
	// The file is read without the profile.
	measure(t, src, be, b)
}

func layerBits(t testing.TB, b []byte) []float64 {
	rep, err := report.Build(context.Background(), reader(t, b), nil)
	require.NoError(t, err)
	var bits []float64
	for _, l := range rep.Layers {
		bits = append(bits, (l.KBits+l.VBits)/2)
	}
	return bits
}

func TestProfile_Refusals(t *testing.T) {
	src, be := open(t, kvFile), openCPU(t)
	refused := func(p *profile.Profile) error {
		cfg := config(t, "bits=3")
		require.NoError(t, cfg.Apply(p))
		var out bytes.Buffer
		_, err := kvfile.Compress(context.Background(), src, &out, kvfile.Options{Config: &cfg, Backend: be})
		require.Error(t, err)
		require.Zero(t, out.Len(), "nothing is written")
		return err
	}
	g := src.Info().Geometry
	g.Rope.Theta *= 2
	other, err := profile.New(src.Info().Model, g)
	require.NoError(t, err)
	var mismatch *profile.MismatchError
	require.ErrorAs(t, refused(other), &mismatch)
	require.Equal(t, "rope", mismatch.What)
	other, err = profile.New("another model", src.Info().Geometry)
	require.NoError(t, err)
	err = refused(other)
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorAs(t, err, &mismatch)
	require.ErrorContains(t, err, "another model")

	for key, value := range map[string]string{"bits": "2", "bytes": "100", "seed": "7", "rows": "lm4",
		"window": "4", "weighted": "true", "brightness": "11"} {
		cfg := kvfile.DefaultConfig()
		err := cfg.Apply(profileOf(t, src, profile.Params{key: value}, 1))
		require.Error(t, err, key)
		require.Equal(t, kvfile.DefaultConfig(), cfg, "as it was")
	}
	cfg := kvfile.DefaultConfig()
	require.ErrorIs(t, cfg.Apply(profileOf(t, src, profile.Params{"seed": "7"}, 1)),
		quant.ErrUnsupported)

	rows := open(t, "../../testdata/minilm-queries-256x384.npy")
	cfg = config(t, "bits=3")
	require.NoError(t, cfg.Apply(profileOf(t, src, nil, 1)))
	_, err = kvfile.Compress(context.Background(), rows, &bytes.Buffer{}, kvfile.Options{Config: &cfg, Backend: be})
	require.ErrorIs(t, err, quant.ErrShape)
}

// A memo changes nothing but the time.
func TestMemo_SameBytes(t *testing.T) {
	src, be := firstTokens(t, open(t, kvFile), 256, 0, 29), openCPU(t)
	memo := &kvfile.Memo{}
	for _, target := range []string{"bits=2.5", "bits=2.25 importance=none", "bits=2.5 sinks=9"} {
		cfg := config(t, target)
		want, _ := compress(t, src, be, cfg)
		for range 2 {
			cfg.Memo = memo
			got, _ := compress(t, src, be, cfg)
			require.True(t, bytes.Equal(want, got), target)
		}
	}
}
