// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// fileBits is the rate of the files that are measured.
const fileBits = 3

// fileCases measure a finished context: planned and packed to be attended to, and as an archive out and in.
func fileCases(quick bool, threads int) []Case {
	tokens := 2048
	if quick {
		tokens = 512
	}
	key := fmt.Sprintf("head_dim=64/gqa=3/bits=%d/context=%d/threads=%d", fileBits, tokens, threads)
	return []Case{{Names: []string{"plan/" + key}, Keep: true, Setup: func(_ context.Context, e *Env) (*Ready, error) {
		m := syntheticCache(2, 64, 3, 3, tokens)
		run := func(ctx context.Context) error {
			p, err := kvfile.Pack(ctx, m, kvfile.Options{Bits: fileBits, Backend: e.Backend})
			if err != nil {
				return err
			}
			return p.Close()
		}
		return &Ready{Work: []*Work{fileWork(e, m, fileBits, run)}}, nil
	}}, {Names: []string{"archive/op=write/" + key, "archive/op=read/" + key}, Keep: true, Setup: archiveReady(tokens)}}
}

func fileWork(e *Env, m *kvfile.Memory, bits float64, run func(ctx context.Context) error) *Work {
	values := 0.0
	for l := range m.K {
		values += float64(len(m.K[l]) + len(m.V[l]))
	}
	return &Work{Unit: "value", Units: values, Bytes: values * bits / 8, Plain: 2 * values, Threads: e.Threads, Run: run}
}

func archiveReady(tokens int) func(context.Context, *Env) (*Ready, error) {
	return func(ctx context.Context, e *Env) (*Ready, error) {
		m := syntheticCache(2, 64, 3, 3, tokens)
		o := kvfile.Options{Bits: fileBits, Archive: true, Backend: e.Backend}
		var file bytes.Buffer
		if _, err := m.Write(ctx, &file, o); err != nil {
			return nil, err
		}
		in := bytes.NewReader(file.Bytes())
		write := func(ctx context.Context) error {
			_, err := m.Write(ctx, io.Discard, o)
			return err
		}
		read := func(ctx context.Context) error {
			r, err := container.Open("archive", in, in.Size(), container.Limits{})
			if err != nil {
				return err
			}
			_, err = kvfile.Decompress(ctx, r, discard{}, kvfile.Options{Backend: e.Backend})
			return err
		}
		return &Ready{Work: []*Work{fileWork(e, m, fileBits, write), fileWork(e, m, fileBits, read)}}, nil
	}
}

// discard is a file that keeps nothing.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// syntheticCache makes rows that change slowly over a mean, with a few tokens that most queries look at.
func syntheticCache(layers, dim, kvHeads, group, tokens int) *kvfile.Memory {
	g := quant.Geometry{Layers: layers, Heads: kvHeads * group, KVHeads: kvHeads, HeadDim: dim, HeadDimV: dim,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 1e5}}
	m := &kvfile.Memory{Geometry: g}
	smooth := func(heads int, seed uint64, mean float32) []float32 {
		x := gaussian(heads*tokens*dim, seed)
		for h := range heads {
			base := gaussian(dim, seed+uint64(h)+100)
			for t := range tokens {
				row := x[(h*tokens+t)*dim:][:dim]
				for d := range row {
					fade := float32(math.Exp2(-4 * float64(d%32) / 32)) // channels of unequal size
					row[d] = (row[d] + mean*base[d]) * fade
					if t > 0 {
						row[d] = 0.8*row[d] + 0.5*x[(h*tokens+t-1)*dim+d]
					}
				}
			}
		}
		return x
	}
	for l := range uint64(layers) {
		m.K = append(m.K, smooth(kvHeads, 10*l+1, 1))
		m.V = append(m.V, smooth(kvHeads, 10*l+2, 0))
		m.Q = append(m.Q, smooth(kvHeads*group, 10*l+3, 0.5))
	}
	return m
}
