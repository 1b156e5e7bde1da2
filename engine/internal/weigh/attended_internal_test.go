// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// noWeigher hides what a backend can do beside the contract.
type noWeigher struct{ backend.Backend }

// TestAttended_AsWeigh holds the weights of an archive, in one pass, in two and over chunks of the keys,
// against those that a tracker makes head by head.
func TestAttended_AsWeigh(t *testing.T) {
	src, err := capture.Open("../../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	in, err := captured.Of(src, 512)
	require.NoError(t, err)
	ctx := context.Background()
	lengths := []int{1024, 200, 96, 40, 1}
	if testing.Short() {
		lengths = lengths[1:]
	}
	for _, tokens := range lengths {
		l := in.Layers[1]
		l.Tokens = tokens
		testAttended(ctx, t, in, be, &l)
	}
	in.Geo = inLayers(in.Geo, 90)
	for _, tokens := range []int{1024, 96, 40} {
		l := in.Layers[1]
		l.Tokens = tokens
		testAttended(ctx, t, in, be, &l)
	}
	none, err := importance.ParseWeighting("default,surprise=0.5")
	require.NoError(t, err)
	require.False(t, relevanceAlone(none))
}

// inLayers gives all layers a window, a scale and a soft cap.
func inLayers(g quant.Geometry, window int64) quant.Geometry {
	for range g.Layers {
		g.PerLayer = append(g.PerLayer, quant.LayerAttention{Rope: g.Rope, Window: window, Scale: 0.1, Softcap: 20})
	}
	return g
}

// The weights of a layer with a window are made of the attention that its own queries pay, by the whole matrix.
func TestWeigh_WithinTheWindow(t *testing.T) {
	src, err := capture.Open("../../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	in, err := captured.Of(src, 512)
	require.NoError(t, err)
	const tokens, window, head = 300, 70, 1
	in.Geo = inLayers(in.Geo, window)
	l := in.Layers[1]
	l.Tokens = tokens
	c := &Weigher{Backend: be, Geo: in.Geo, Recipe: "relevance=1,window=64,mix=1,min=1e-9,max=1e9"}
	now, _, _, err := c.Weigh(context.Background(), &l, false)
	require.NoError(t, err)

	sum, saw := make([]float64, tokens), make([]float64, tokens)
	k := make([]float32, tokens*64)
	require.NoError(t, l.K.ReadF32(head, 0, tokens, k))
	q := make([]float32, tokens*64)
	for g := range 3 {
		require.NoError(t, l.Q.ReadF32(head*3+g, 0, tokens, q))
		for i := range tokens {
			first := max(0, i-window+1)
			p, z := make([]float64, i-first+1), 0.0
			for j := range p {
				var s float64
				for d := range 64 {
					s += float64(q[i*64+d]) * float64(k[(first+j)*64+d])
				}
				p[j] = math.Exp(20 * math.Tanh(0.1*s/20))
				z += p[j]
			}
			for j, x := range p {
				sum[first+j] += x / z * x / z
				saw[first+j]++
			}
		}
	}
	at := tokens - 10 // weights are relative
	root := func(t int) float64 { return math.Sqrt(sum[t] / saw[t]) }
	for tok := range tokens {
		require.InEpsilon(t, root(tok)/root(at), float64(now[head][tok])/float64(now[head][at]), 2e-3, "token %d", tok)
	}
}

func testAttended(ctx context.Context, t *testing.T, in *input.Data, be backend.Backend, l *input.Layer) {
	for _, text := range []string{"default", "default,mix=0", "default,window=48"} {
		p, err := importance.ParseWeighting(text)
		require.NoError(t, err)
		require.True(t, relevanceAlone(p))
		c := &Weigher{Backend: be, Geo: in.Geo, Recipe: text}
		p = c.ofLayer(l, p)
		want, weighed, err := c.weighHeads(ctx, l, p)
		require.NoError(t, err)
		for _, chunk := range []int{8192, 300} {
			for _, hidden := range []bool{false, true} {
				old := keyChunk
				keyChunk = chunk
				d := &Weigher{Backend: be, Geo: in.Geo, Recipe: text}
				if hidden {
					d.Backend = noWeigher{be}
				}
				got, use, err := d.attended(ctx, l, p)
				keyChunk = old
				require.NoError(t, err)
				require.Equal(t, weighed.Collapsed, use.Collapsed)
				require.Equal(t, weighed.Skipped, use.Skipped)
				for h := range want {
					for tok, w := range want[h] {
						// Probabilities are off by some 2^-18 of themselves, as log-sum-exps of up to 32 are.
						require.InEpsilon(t, w, got[h][tok], 1e-4, "%s: %d tokens, chunk %d: head %d token %d", text,
							l.Tokens, chunk, h, tok)
					}
				}
			}
		}
	}
}
