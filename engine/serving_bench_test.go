// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Two layers of a small model: 9 query heads, 3 KV heads, head_dim 64. A step of the model has 15 times as many.
var servingGeometry = quant.Geometry{Layers: 2, Heads: 9, KVHeads: 3, HeadDim: 64, HeadDimV: 64}

// timed is a backend that adds up the processor time of its calls.
type timed struct {
	backend.Backend
	attend, code time.Duration
}

func (b *timed) Attend(ctx context.Context, q *backend.Queries, v backend.View, to backend.Attention) error {
	start := cpuTime()
	err := b.Backend.Attend(ctx, q, v, to)
	b.attend += cpuTime() - start
	return err
}

func (b *timed) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	start := cpuTime()
	err := b.Backend.Encode(ctx, jobs)
	b.code += cpuTime() - start
	return err
}

// serving is a cache with some sequences of the same length that decode together.
type serving struct {
	b       *testing.B
	be      *timed
	c       *Cache
	rows    []Row
	k, v, q []float32
	out     []float32
}

// newServing fills a cache. start is the coding of rows that leave the window.
func newServing(b *testing.B, seqs int, tokens int, start rung, budget int64) *serving {
	g := servingGeometry
	made, err := cpu.Open(cpu.Options{Workers: 1})
	require.NoError(b, err)
	s := &serving{b: b, be: &timed{Backend: made}}
	s.c, err = Open(s.be, g, Config{Budget: budget, Seed: 3})
	require.NoError(b, err)
	b.Cleanup(func() { _ = s.c.Close(); _ = made.Close() })
	s.c.start, s.c.pressure.fixed = [sides]rung{start, start}, true
	const chunk = 128
	for i := range seqs {
		q, err := s.c.NewSequence()
		require.NoError(b, err)
		s.rows = append(s.rows, Row{Seq: q, Tokens: 1})
		k, v := values(chunk*g.KVHeads*g.HeadDim, 1, uint64(i), 1), values(chunk*g.KVHeads*g.HeadDimV, 1, uint64(i), 2)
		for n := 0; n < tokens; n += chunk {
			st, err := s.c.Begin(context.Background(), []Row{{Seq: q, Tokens: chunk}})
			require.NoError(b, err)
			for l := range g.Layers {
				require.NoError(b, st.Append(l, k, v))
			}
			require.NoError(b, st.Commit(chunk))
		}
	}
	s.k, s.v = values(seqs*g.KVHeads*g.HeadDim, 2, 1, 1), values(seqs*g.KVHeads*g.HeadDimV, 2, 1, 2)
	s.q, s.out = values(seqs*g.Heads*g.HeadDim, 2, 1, 3), make([]float32, seqs*g.Heads*g.HeadDimV)
	return s
}

// step decodes one token of every sequence and returns its processor time.
func (s *serving) step() time.Duration {
	start := cpuTime()
	st, err := s.c.Begin(context.Background(), s.rows)
	if err == nil {
		for l := range servingGeometry.Layers {
			if err == nil {
				err = st.Append(l, s.k, s.v)
			}
			if err == nil {
				err = st.Attend(l, s.q, s.out)
			}
		}
	}
	if err == nil {
		err = st.Commit(1)
	}
	if err != nil {
		s.b.Fatal(err)
	}
	return cpuTime() - start
}

// measure runs steps of two caches in turns. It returns the times of the first, and the median ratio of the
// second's to it.
func measure(s, other *serving, n int) (times []time.Duration, ratio float64) {
	var ratios []float64
	for range 3 {
		s.step()
		other.step()
	}
	s.be.attend, s.be.code = 0, 0
	for range n {
		t := s.step()
		times = append(times, t)
		ratios = append(ratios, float64(other.step())/float64(t))
	}
	slices.Sort(ratios)
	return times, ratios[len(ratios)/2]
}

// BenchmarkServing_Decode: steps of one token in every sequence at 3 bits, beside the same cache in f16 in
// turns. attended/s are rows of K and V that the queries of a step see, for each second of a processor;
// host is the part of a step that is not in the backend.
func BenchmarkServing_Decode(b *testing.B) {
	for _, tokens := range []int{2048, 16384} {
		for _, seqs := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("tokens=%d/seqs=%d", tokens, seqs), func(b *testing.B) {
				size := int64(seqs*tokens) * 2 * 2 * 3 * 128
				exact := newServing(b, seqs, tokens, f16, 2*size+64<<20)
				s := newServing(b, seqs, tokens, lm3, size/2+64<<20)
				n := max(24, min(400, 1<<20/(tokens*seqs)))
				var all time.Duration
				var times []time.Duration
				var ratio float64
				for b.Loop() {
					times, ratio = measure(s, exact, n)
				}
				for _, t := range times {
					all += t
				}
				slices.Sort(times)
				g := servingGeometry
				per := float64(times[len(times)/2])
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(per/1e3, "cpu-us/step")
				b.ReportMetric(float64(seqs)/per*1e9, "tok/s")
				b.ReportMetric(float64(seqs*tokens*g.Layers*g.KVHeads)/per*1e3, "Mrows/s")
				b.ReportMetric(ratio, "x-of-f16")
				b.ReportMetric(100*(1-float64(s.be.attend+s.be.code)/float64(all)), "host-%")
				b.ReportMetric(float64(s.c.led.held)/float64(exact.c.led.held), "bytes-of-f16")
			})
		}
	}
}

// BenchmarkServing_Consolidation: steps of one sequence of 4,096 tokens and more while pages leave the window,
// segments close and, with pressure, rows are demoted.
func BenchmarkServing_Consolidation(b *testing.B) {
	for _, pressed := range []bool{false, true} {
		for _, seqs := range []int{1, 8} {
			b.Run(fmt.Sprintf("pressure=%t/seqs=%d", pressed, seqs), func(b *testing.B) {
				budget := int64(64 << 20)
				if pressed {
					budget = int64(seqs*4096)*2*2*3*128/4 + 1<<20
				}
				s := newServing(b, seqs, 4096, lm3, budget)
				s.c.pressure.fixed = !pressed
				var times []time.Duration
				for b.Loop() {
					times = times[:0]
					for range 800 {
						times = append(times, s.step())
					}
				}
				slices.Sort(times)
				at := func(share float64) float64 { return float64(times[int(share*float64(len(times)-1))]) }
				var all time.Duration
				for _, t := range times {
					all += t
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(at(.5)/1e3, "p50-cpu-us")
				b.ReportMetric(at(.99)/at(.5), "p99/p50")
				b.ReportMetric(at(1)/at(.5), "max/p50")
				b.ReportMetric(float64(all)/float64(len(times))/at(.5), "mean/p50")
			})
		}
	}
}
