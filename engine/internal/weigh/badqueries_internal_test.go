// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// growing is an io.WriterAt.
type growing struct {
	mu sync.Mutex
	b  []byte
}

func (g *growing) WriteAt(p []byte, off int64) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if need := int(off) + len(p); need > len(g.b) {
		g.b = append(g.b, make([]byte, need-len(g.b))...)
	}
	return copy(g.b[off:], p), nil
}

// badCapture is one layer of 4 query heads over 2 KV heads; spoil may change its queries, [4*tokens, 16].
func badCapture(t testing.TB, tokens int, spoil func(q quant.Rows)) *capture.Source {
	t.Helper()
	g := quant.Geometry{Layers: 1, Heads: 4, KVHeads: 2, HeadDim: 16, HeadDimV: 16,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: 16, Theta: 10000}}
	rng := rand.New(rand.NewPCG(7, uint64(tokens)))
	var m growing
	var decls []capture.Decl
	for i, name := range []string{"layers.0.k", "layers.0.v", "layers.0.q"} {
		decls = append(decls, capture.Decl{Name: name, DTypeName: "F32", Shape: []int64{int64(2 + i/2*2), int64(tokens), 16}})
	}
	w, err := capture.NewWriter(&m, decls, capture.KVMetadata(g, "bad", 0))
	require.NoError(t, err)
	for _, d := range decls {
		x := quant.Rows{Dim: 16, Data: make([]float32, d.Shape[0]*d.Shape[1]*16)}
		for i := range x.Data {
			x.Data[i] = float32(rng.NormFloat64())
		}
		if d.Name == "layers.0.q" && spoil != nil {
			spoil(x)
		}
		c := quant.Coding{Format: quant.F32}
		b := make([]byte, c.PackedBytes(x.Len(), 16))
		require.NoError(t, quant.Encode(b, c, x, 0))
		require.NoError(t, w.WriteAt(d.Name, 0, b))
	}
	require.NoError(t, w.Close())
	src, err := capture.New("bad", bytes.NewReader(m.b), int64(len(m.b)), capture.Limits{})
	require.NoError(t, err)
	return src
}

// badSpots are lists of positions, most of them one, at both ends of every window and all of them.
func badSpots(tokens int) (all [][]int) {
	seen := map[int]bool{}
	for _, p := range []int{0, 1, 35, 36, 37, 63, 64, 65, 99, 127, 128, tokens / 2, tokens - 65, tokens - 64,
		tokens - 63, tokens - 2, tokens - 1} {
		if p >= 0 && p < tokens && !seen[p] {
			seen[p] = true
			all = append(all, []int{p})
		}
	}
	every := make([]int, tokens)
	for i := range every {
		every[i] = i
	}
	return append(all, []int{0, tokens - 1}, []int{tokens / 3, 2 * tokens / 3}, every[tokens/2:], every[:tokens/2+1], every)
}

// Wherever queries of a head are not finite, the windows that hold them are left out of its weights and out of
// nothing else: both ways to Weigh agree, and other heads Weigh as if nothing were wrong.
func TestWeigh_BadQueries(t *testing.T) {
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, be.Close()) }()
	ctx := context.Background()
	lengths := []int{1, 2, 5, 63, 64, 65, 90, 100, 101, 127, 128, 129, 150, 191, 192, 193, 260}
	if testing.Short() {
		lengths = []int{1, 63, 65, 100, 128, 150, 193}
	}
	for _, tokens := range lengths {
		for _, text := range []string{"default", "default,mix=0", "default,mix=1,window=48", "default,window=1"} {
			p, err := importance.ParseWeighting(text)
			require.NoError(t, err)
			weigh := func(src *capture.Source) (heads, layer [][]float32, a, b Use) {
				in, err := captured.Of(src, 512)
				require.NoError(t, err)
				c := &Weigher{Backend: be, Geo: in.Geo, Recipe: text}
				heads, a, err = c.weighHeads(ctx, &in.Layers[0], p)
				require.NoError(t, err)
				layer, b, err = c.attended(ctx, &in.Layers[0], p)
				require.NoError(t, err)
				return heads, layer, a, b
			}
			_, clean, _, _ := weigh(badCapture(t, tokens, nil))
			from, _ := observedFrom(p, tokens)
			for i, spots := range badSpots(tokens) {
				name := fmt.Sprintf("%d tokens, %s, bad %v", tokens, text, spots[:min(3, len(spots))])
				bad := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 1e38}[i%4]
				both := i%3 == 0
				src := badCapture(t, tokens, func(q quant.Rows) {
					for _, at := range spots {
						row := q.Row(tokens + at) // of query head 1, that is KV head 0
						row[at%16] = bad
						for d := range row {
							if bad == 1e38 {
								row[d] = bad // scores are beyond float32
							}
						}
						if both {
							q.Row(3*tokens + at)[0] = float32(math.NaN())
						}
					}
				})
				heads, layer, a, b := weigh(src)
				require.Equal(t, a, b, name)
				require.Len(t, layer, 2)
				counts := spots[len(spots)-1] >= from
				want := 0
				if counts {
					want = 1
					if both {
						want = 2
					}
				}
				if bad != 1e38 { // scores may be in range
					require.Equal(t, want, a.Skipped, name)
				}
				if len(spots) == tokens && bad != 1e38 {
					require.Equal(t, want, a.Unweighed, name)
				}
				if !both {
					require.Equal(t, clean[1], layer[1], name)
				}
				for h := range heads {
					require.Equal(t, heads[h] == nil, layer[h] == nil, name)
					for tok, w := range heads[h] {
						require.InEpsilon(t, w, layer[h][tok], 1e-4, "%s: head %d token %d", name, h, tok)
					}
				}
			}
		}
	}
}
