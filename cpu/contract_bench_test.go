// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// The benchmarks here compare two ways of doing the same attention. They run the ways in turns and
// report the median of the ratios of neighbouring processor times, which a busy machine disturbs
// little.

// contractDim, contractGroup: the shape of a small model with 9 query heads and 3 KV heads.
const (
	contractDim   = 64
	contractGroup = 3
	kvHeads       = 3
)

// stage is a table with a step to run over it.
type stage struct {
	b     *Backend
	table backend.Table
	n     int // blocks in the table
}

func newStage(b *testing.B, be *Backend, rope *quant.Rope) *stage {
	table, err := be.NewTable(backend.Shape{HeadDim: contractDim, HeadDimV: contractDim, Rope: rope})
	require.NoError(b, err)
	return &stage{b: be, table: table}
}

// add puts tokens rows into the table in blocks of rows rows, and returns their list. each, if not
// nil, changes a block.
func (s *stage) add(b *testing.B, coding string, tokens, rows int, each func(i int, blk *backend.Block)) (list []int32) {
	c, err := quant.ParseCoding(coding)
	require.NoError(b, err)
	x := quanttest.Rows(quanttest.Gaussian, rows, contractDim, 1)
	packed := make([]byte, c.PackedBytes(rows, contractDim))
	require.NoError(b, quant.Encode(packed, c, x, 1))
	size := (int64(len(packed)) + 63) / 64 * 64
	buf, err := s.b.Alloc(2 * size * int64(tokens/rows))
	require.NoError(b, err)
	var blocks []backend.Block
	for i := range tokens / rows {
		blk := backend.Block{Rows: int32(rows), Base: int64(i * rows)}
		for k, side := range []*backend.Side{&blk.K, &blk.V} {
			at := int64(2*i+k) * size
			require.NoError(b, buf.Upload(at, packed))
			*side = backend.Side{Coding: c, Seed: 1, Data: backend.Span{Buf: buf, Off: at, Len: int64(len(packed))}}
		}
		if each != nil {
			each(i, &blk)
		}
		list = append(list, int32(s.n+i))
		blocks = append(blocks, blk)
	}
	require.NoError(b, s.table.Set(s.n, blocks...))
	s.n += len(blocks)
	return list
}

// step returns a function that lets one token attend to lists in one call, one query each.
func (s *stage) step(b *testing.B, mass bool, lists ...[]int32) func() {
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, len(lists)*contractGroup, contractDim, 9).Data,
		Group: contractGroup, HeadDim: contractDim, HeadDimV: contractDim,
		Scale: float32(1 / math.Sqrt(contractDim)), BlockPtr: []int32{0}}
	for _, l := range lists {
		q.BlockIdx = append(q.BlockIdx, l...)
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
		q.Pos = append(q.Pos, 1<<20)
	}
	to := backend.Attention{Out: make([]float32, len(lists)*contractGroup*contractDim)}
	if mass {
		to.Mass = make([]float32, len(q.BlockIdx))
	}
	v, err := s.table.View()
	require.NoError(b, err)
	return func() {
		if err := s.b.Attend(context.Background(), q, v, to); err != nil {
			b.Fatal(err)
		}
	}
}

// compare runs two ways in turns, each as often as it takes a millisecond, and reports the median
// ratio of their times.
func compare(b *testing.B, way, baseline func()) {
	way()
	start := time.Now()
	baseline()
	repeat := max(1, int(time.Millisecond/max(1, time.Since(start))))
	took := func(f func()) float64 {
		start := cpuTime()
		for range repeat {
			f()
		}
		return float64(cpuTime() - start)
	}
	took(way)
	require.Zero(b, int(testing.AllocsPerRun(20, way)), "allocations of a step")
	var ratios, times []float64
	b.ResetTimer()
	for i := 0; b.Loop() || len(ratios) < 31; i++ {
		a, c := took(way), took(baseline)
		if i%2 == 1 {
			c, a = took(baseline), took(way)
		}
		ratios, times = append(ratios, a/c), append(times, a)
	}
	slices.Sort(ratios)
	slices.Sort(times)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
	b.ReportMetric(times[len(times)/2]/float64(repeat)/1e3, "cpu-us/step")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkContract_Table: one sequence of 1,024 tokens in a table with 63 others, against a table
// of its own.
func BenchmarkContract_Table(b *testing.B) {
	for _, rows := range []int{32, 128} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			be := openBench(b, "", 1)
			many, alone := newStage(b, be, nil), newStage(b, be, nil)
			var list []int32
			for i := range 64 {
				l := many.add(b, "lm3+s8", 1024, rows, nil)
				if i == 17 {
					list = l
				}
			}
			compare(b, many.step(b, false, list), alone.step(b, false, alone.add(b, "lm3+s8", 1024, rows, nil)))
		})
	}
}

// BenchmarkContract_Step: a step of 30 layers over 4,096 tokens in blocks of 32 or 128 rows, against
// one block a head.
func BenchmarkContract_Step(b *testing.B) {
	const layers, tokens = 30, 4096
	for _, rows := range []int{32, 128} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			be := openBench(b, "", 1)
			model := func(rows int) func() {
				s := newStage(b, be, nil)
				var calls []func()
				for range layers {
					var lists [][]int32
					for range kvHeads {
						lists = append(lists, s.add(b, "lm3+s8", tokens, rows, nil))
					}
					calls = append(calls, s.step(b, false, lists...))
				}
				return func() {
					for _, f := range calls {
						f()
					}
				}
			}
			compare(b, model(rows), model(tokens))
		})
	}
}

// BenchmarkContract_Mass: 4,096 tokens with the mass of every block, against without.
func BenchmarkContract_Mass(b *testing.B) {
	for _, rows := range []int{32, 128} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			s := newStage(b, openBench(b, "", 1), nil)
			list := s.add(b, "lm3+s8", 4096, rows, nil)
			compare(b, s.step(b, true, list), s.step(b, false, list))
		})
	}
}

// BenchmarkContract_Terms: 4,096 tokens with means and a metric, or with an offset for each 512
// tokens, against without. A mean belongs to 512 rows, a segment, or to 128.
func BenchmarkContract_Terms(b *testing.B) {
	for _, coding := range []string{"lm3+s8", "lm2+s8"} {
		for _, rows := range []int{32, 128} {
			b.Run(fmt.Sprintf("format=%s/rows=%d", coding, rows), func(b *testing.B) { benchTerms(b, coding, rows) })
		}
	}
}

func benchTerms(b *testing.B, coding string, rows int) {
	be := openBench(b, "", 1)
	rope := &quant.Rope{Layout: quant.RopeHalf, RotaryDim: contractDim, Theta: 1e4}
	s := newStage(b, be, rope)
	means, err := be.Alloc(int64(frame.MeanBytes(contractDim)) * 64)
	require.NoError(b, err)
	mean := func(i, per, k int) backend.Span {
		n := int64(frame.MeanBytes(contractDim))
		return backend.Span{Buf: means, Off: int64(2*(i*rows/per)+k) * n, Len: n}
	}
	a := slices.Repeat([]float32{2, 0.5}, contractDim/2)
	m, err := frame.NewDiagonal(a)
	require.NoError(b, err)
	plain := s.step(b, false, s.add(b, coding, 4096, rows, nil))
	for name, each := range map[string]func(i int, blk *backend.Block){
		"means512": func(i int, blk *backend.Block) {
			blk.MeanK, blk.MeanV = mean(i, 512, 0), mean(i, 512, 1)
		},
		"means128": func(i int, blk *backend.Block) {
			blk.MeanK, blk.MeanV = mean(i, 128, 0), mean(i, 128, 1)
		},
		"metric": func(i int, blk *backend.Block) { blk.Metric = m },
		"both": func(i int, blk *backend.Block) {
			blk.MeanK, blk.MeanV, blk.Metric = mean(i, 512, 0), mean(i, 512, 1), m
		},
		"offset":  func(i int, blk *backend.Block) { blk.Offset = 7 },
		"offsets": func(i int, blk *backend.Block) { blk.Offset = int32(1 + i*rows/512) },
	} {
		b.Run("with="+name, func(b *testing.B) {
			compare(b, s.step(b, false, s.add(b, coding, 4096, rows, each)), plain)
		})
	}
}
