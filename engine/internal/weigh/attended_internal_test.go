// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/importance"
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
	for _, tokens := range []int{1024, 200, 96, 40, 1} {
		l := in.Layers[1]
		l.Tokens = tokens
		testAttended(ctx, t, in, be, &l)
	}
	none, err := importance.ParseWeighting("default,surprise=0.5")
	require.NoError(t, err)
	require.False(t, relevanceAlone(none))
}

func testAttended(ctx context.Context, t *testing.T, in *input.Data, be backend.Backend, l *input.Layer) {
	for _, text := range []string{"default", "default,mix=0", "default,window=48"} {
		p, err := importance.ParseWeighting(text)
		require.NoError(t, err)
		require.True(t, relevanceAlone(p))
		c := &Weigher{Backend: be, Geo: in.Geo, Recipe: text}
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
