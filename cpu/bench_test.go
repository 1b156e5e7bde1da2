// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// benchCodings are the codings of the attention benchmarks. "mixed" is like a plan of a cache: half
// lm2, the rest finer.
var benchCodings = map[string][]string{
	"f16": {"f16"}, "u8": {"u8+s8"}, "lm4": {"lm4+s8"}, "lm3": {"lm3+s8"}, "lm2": {"lm2+s8"},
	"mixed": {"lm2+s8", "lm3+s8", "lm2+s8", "lm4+s8", "lm2+s8", "lm3+s8", "lm2+s8", "u8+s8"},
}

var benchFormats = []string{"f16", "u8", "lm4", "lm3", "lm2", "mixed"}

// benchRig holds blocks in one buffer: copies of one block per coding.
type benchRig struct {
	rig
	tokens int
}

// newBenchRig makes blocks of rows rows that take about bytes in total.
func newBenchRig(b *testing.B, be *Backend, format string, dim, rows int, bytes int64) benchRig {
	type side struct {
		c      quant.Coding
		packed []byte
	}
	var kinds []side
	var round int64
	const align = 64
	pad := func(n int) int64 { return int64(n+align-1) / align * align }
	for i, name := range benchCodings[format] {
		c, err := quant.ParseCoding(name)
		require.NoError(b, err)
		s := side{c, make([]byte, c.PackedBytes(rows, dim))}
		x := quanttest.Rows(quanttest.Gaussian, rows, dim, uint64(i))
		require.NoError(b, quant.Encode(s.packed, c, x, 1))
		kinds = append(kinds, s)
		round += 2 * pad(len(s.packed))
	}
	rounds := max(1, bytes/round)
	buf, err := be.Alloc(rounds * round)
	require.NoError(b, err)
	r := benchRig{rig: rig{b: be}}
	var at int64
	for range rounds {
		for _, k := range kinds {
			blk := backend.Block{Rows: int32(rows), Base: int64(r.tokens)}
			for _, s := range []*backend.Side{&blk.K, &blk.V} {
				require.NoError(b, buf.Upload(at, k.packed))
				*s = backend.Side{Coding: k.c, Seed: 1,
					Data: backend.Span{Buf: buf, Off: at, Len: int64(len(k.packed))}}
				at += pad(len(k.packed))
				r.bytes += int64(len(k.packed))
			}
			r.blocks = append(r.blocks, blk)
			r.tokens += rows
		}
	}
	b.Cleanup(func() { _ = buf.Free() })
	return r
}

func openBench(b *testing.B, isa string, workers int) *Backend {
	be, err := Open(Options{ISA: isa, Workers: workers})
	require.NoError(b, err)
	b.Cleanup(func() { _ = be.Close() })
	return be
}

// BenchmarkAttend measures one query over a context of about 4096 tokens in blocks of 32, which
// stays in the caches nearest to a core. ns/pair is per row of K and V together, for all query
// heads.
func BenchmarkAttend(b *testing.B) {
	for _, isa := range ISAs() {
		for _, format := range benchFormats {
			for _, dim := range []int{64, 128} {
				for _, group := range []int{1, 3, 4, 8} {
					name := fmt.Sprintf("backend=cpu-%s/format=%s/head_dim=%d/gqa=%d/set=cache/workers=1",
						isa, format, dim, group)
					b.Run(name, func(b *testing.B) {
						be := openBench(b, isa, 1)
						one := newBenchRig(b, be, format, dim, 32, 1)
						size := one.bytes * int64(4096/one.tokens)
						benchAttend(b, newBenchRig(b, be, format, dim, 32, size+size/64), group, dim)
					})
				}
			}
		}
	}
}

func benchAttend(b *testing.B, r benchRig, group, dim int) {
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, group, dim, 9).Data, Group: group,
		HeadDim: dim, HeadDimV: dim, Scale: float32(1 / math.Sqrt(float64(dim))),
		Pos: []int64{int64(r.tokens)}, BlockPtr: []int32{0, int32(len(r.blocks))}}
	for i := range r.blocks {
		q.BlockIdx = append(q.BlockIdx, int32(i))
	}
	out, v := make([]float32, group*dim), r.view(b, dim)
	attend := func() {
		if err := r.b.Attend(context.Background(), q, v, backend.Attention{Out: out}); err != nil {
			b.Fatal(err)
		}
	}
	if r.tokens < 1<<20 {
		attend()
	}
	b.SetBytes(int64(r.tokens) * int64(dim) * 2 * 2) // of K and V as f16
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuTime()
	for b.Loop() {
		attend()
	}
	used := cpuTime() - start
	report(b, used.Nanoseconds(), int64(r.tokens), r.bytes)
}

// report reports nanoseconds per row pair, in wall time and in processor time, and the packed bytes
// read per second.
func report(b *testing.B, cpuNS, pairs, bytes int64) {
	n, ns := float64(pairs)*float64(b.N), float64(b.Elapsed().Nanoseconds())
	b.ReportMetric(ns/n, "ns/pair")
	b.ReportMetric(float64(cpuNS)/n, "cpu-ns/pair")
	b.ReportMetric(float64(bytes)*float64(b.N)/ns, "packed-GB/s")
}

// BenchmarkCodec measures encoding (from float32, from f16), decoding to float32 and demotion of
// 4096 rows on one core.
func BenchmarkCodec(b *testing.B) {
	const rows, dim = 4096, 64
	for _, isa := range ISAs() {
		be := openBench(b, isa, 1)
		for _, name := range []string{"u8+s8", "lm4+s8", "lm3+s8", "lm2+s8", "lm1+s8", "lm3"} {
			c, err := quant.ParseCoding(name)
			require.NoError(b, err)
			buf := func(n int) backend.Span {
				m, err := be.Alloc(int64(n))
				require.NoError(b, err)
				return backend.Span{Buf: m, Len: int64(n)}
			}
			src, dst := buf(4*rows*dim), backend.Side{Coding: c, Seed: 1, Data: buf(c.PackedBytes(rows, dim))}
			x := quanttest.Rows(quanttest.Gaussian, rows, dim, 1)
			raw := make([]byte, 4*rows*dim)
			require.NoError(b, quant.Encode(raw, quant.Coding{Format: quant.F32}, x, 0))
			require.NoError(b, src.Buf.Upload(0, raw))
			enc := []backend.EncodeJob{{Src: src, DType: quant.Float32, Rows: rows, Dim: dim, Dst: dst}}
			dec := []backend.DecodeJob{{Src: dst, Rows: rows, Dim: dim, Dst: buf(4 * rows * dim)}}
			benchValues(b, "encode", isa, name, rows*dim, func() error {
				return be.Encode(context.Background(), enc)
			})
			benchValues(b, "decode", isa, name, rows*dim, func() error {
				return be.Decode(context.Background(), dec)
			})
			if to := c; c.Format.Nested() && c.Format > quant.LM1 {
				to.Format--
				dem := []backend.DemoteJob{{Src: dst, To: to, Rows: rows, Dim: dim,
					Dst: buf(to.PackedBytes(rows, dim))}}
				benchValues(b, "demote", isa, name, rows*dim, func() error {
					return be.Demote(context.Background(), dem)
				})
			}
		}
	}
}

// BenchmarkHadamard measures the rotation of 32 rows, which stay in the nearest cache.
func BenchmarkHadamard(b *testing.B) {
	const rows = 32
	for _, k := range append([]*codec.Kernels{codec.Generic()}, codec.Native()...) {
		for _, dim := range []int{64, 80, 128, 256} {
			b.Run(fmt.Sprintf("backend=cpu-%s/head_dim=%d", k.ISA(), dim), func(b *testing.B) {
				rot, err := codec.NewRotation(dim, 1)
				require.NoError(b, err)
				x := quanttest.Rows(quanttest.Gaussian, rows, dim, 1).Data
				measure(b, 2*len(x), func() error {
					k.Forward(rot, x, rows, dim)
					k.Inverse(rot, x, rows, dim) // or values would grow
					return nil
				})
			})
		}
	}
}

func benchValues(b *testing.B, op, isa, format string, values int, f func() error) {
	b.Run(fmt.Sprintf("op=%s/backend=cpu-%s/format=%s/head_dim=64/tokens=4096", op, isa, format),
		func(b *testing.B) { measure(b, values, f) })
}

// measure reports the values that f processes per second, in wall time and in processor time.
func measure(b *testing.B, values int, f func() error) {
	b.SetBytes(int64(4 * values))
	b.ReportAllocs()
	require.NoError(b, f())
	b.ResetTimer()
	start := cpuTime()
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	used := cpuTime() - start
	n := float64(values) * float64(b.N)
	b.ReportMetric(n/float64(b.Elapsed().Nanoseconds()), "Gvalues/s")
	b.ReportMetric(n/float64(max(1, used.Nanoseconds())), "cpu-Gvalues/s")
}
