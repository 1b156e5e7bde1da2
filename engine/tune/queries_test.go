// SPDX-License-Identifier: Apache-2.0

package tune_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// queried is a capture of two layers whose queries have the mean that is their head's number, and deviations of 2;
// without RoPE.
func queried(t *testing.T, g quant.Geometry, withQ bool) *capture.Source {
	const tokens = 2000
	f, err := atomicfile.NewScratch()
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	var decls []capture.Decl
	for l := range g.Layers {
		for part, heads := range map[string]int{"k": g.KVHeads, "v": g.KVHeads, "q": g.Heads} {
			if part != "q" || withQ {
				decls = append(decls, capture.Decl{Name: fmt.Sprintf("layers.%d.%s", l, part), DTypeName: "F32",
					Shape: []int64{int64(heads), tokens, int64(g.HeadDim)}})
			}
		}
	}
	w, err := capture.NewWriter(f, decls, capture.KVMetadata(g, "m", 0))
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range decls {
		var b []byte
		for h := range d.Shape[0] {
			for range tokens * g.HeadDim {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(float64(h)+2*rng.NormFloat64())))
			}
		}
		require.NoError(t, w.WriteAt(d.Name, 0, b))
	}
	require.NoError(t, w.Close())
	size, err := f.Seek(0, 2)
	require.NoError(t, err)
	src, err := capture.New("m", f, size, capture.Limits{})
	require.NoError(t, err)
	return src
}

func TestWithQueries(t *testing.T) {
	g := quant.Geometry{Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8, HeadDimV: 8}
	p, err := profile.New("m", g)
	require.NoError(t, err)
	with, err := tune.WithQueries(context.Background(), []*capture.Source{queried(t, g, true)}, p)
	require.NoError(t, err)
	q, err := with.Queries()
	require.NoError(t, err)
	for l := range 2 {
		for h := range 4 {
			mean, variance := q.At(l, h, 4, 8)
			for d := range 8 {
				require.InDelta(t, h, mean[d], 0.2) // 2/sqrt(2000) is 0.045
				require.InDelta(t, 4, variance[d], 0.6)
			}
		}
	}
	require.Equal(t, "2000", with.Meta(profile.SectionQueries)["tokens"])
	_, err = tune.WithQueries(context.Background(), []*capture.Source{queried(t, g, false)}, p)
	require.ErrorIs(t, err, quant.ErrShape)
	g.HeadDim, g.HeadDimV = 16, 16
	_, err = tune.WithQueries(context.Background(), []*capture.Source{queried(t, g, true)}, p)
	require.ErrorIs(t, err, quant.ErrShape)
}
