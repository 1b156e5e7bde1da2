// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"
	"math"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// The benchmarks run on a real device only; the time of the stand-in means nothing. kernel-us is
// the mean time on the device's clock. GB/s are packed bytes read (attend) or source bytes (encode)
// over that time. share is GB/s relative to a copy on the device, read and written, in the same
// process. ns/op of a Go benchmark also includes the host's work and the transfers.

// benchBlock is the number of rows in a block.
const benchBlock = 32

// openBench opens the device of a benchmark.
func openBench(b *testing.B, kernel string) *Backend {
	requireDevice(b)
	be, err := Open(Options{Device: AnyDevice, NoSelfTest: true, Attend: kernel})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, be.Close()) })
	return be
}

func benchAlloc(b *testing.B, be *Backend, n int64) backend.Buffer {
	buf, err := be.Alloc(n)
	if err != nil {
		b.Skipf("%d bytes of device memory: %v", n, err)
	}
	return buf
}

// copyBandwidth is the bandwidth of a copy on the device in bytes per second, counting reads and
// writes.
func copyBandwidth(b *testing.B, be *Backend) float64 {
	const n, times = 1 << 28, 8
	src, dst := benchAlloc(b, be, n), benchAlloc(b, be, n)
	defer func() { require.NoError(b, src.Free()); require.NoError(b, dst.Free()) }()
	best := 0.0
	for range 5 {
		d, err := be.DeviceTime(func() error {
			return be.withLane(func(l *lane) error {
				err := l.timed(func() error {
					for range times {
						err := be.dev.api.CopyOnDevice(dst.(*buffer).at, src.(*buffer).at, n, l.stream)
						if err != nil {
							return err
						}
					}
					return nil
				})
				if err := errLater(err, l.wait()); err != nil {
					return err
				}
				return l.tick()
			})
		})
		require.NoError(b, err)
		best = max(best, 2*n*times/d.Seconds())
	}
	return best
}

// shape is a case of attention: a batch of sequences of tokens rows, each with kvHeads lists.
type shape struct {
	batch, kvHeads, group, dim, tokens int
	coding                             string // of K and V: "lm3+s8", or "mixed"
	kernel                             string // Options.Attend
}

func (s shape) name() string {
	return fmt.Sprintf("backend=cuda/kernel=%s/format=%s/head_dim=%d/gqa=%d/kv_heads=%d/batch=%d/tokens=%d",
		s.kernel, s.coding, s.dim, s.group, s.kvHeads, s.batch, s.tokens)
}

func (s shape) codingOf(block int) quant.Coding {
	f := map[string]quant.Format{"lm4+s8": quant.LM4, "lm3+s8": quant.LM3, "lm2+s8": quant.LM2}[s.coding]
	if s.coding == "mixed" { // one block in eight at 4 bits, half of the rest at 3 and at 2
		f = []quant.Format{quant.LM4, quant.LM3, quant.LM2, quant.LM3, quant.LM2, quant.LM3, quant.LM2,
			quant.LM3}[block%8]
	}
	return quant.Coding{Format: f, Scale: quant.ScaleLog8}
}

// benchShapes are the shapes of the table in bench/results.
func benchShapes() []shape {
	var all []shape
	for _, c := range []string{"lm4+s8", "lm3+s8", "lm2+s8", "mixed"} {
		for _, tokens := range []int{8 << 10, 32 << 10, 128 << 10, 512 << 10} {
			for _, group := range []int{1, 4, 8} {
				for _, kernel := range AttendKernels() {
					all = append(all, shape{1, 8, group, 128, tokens, c, kernel})
				}
			}
		}
		for _, batch := range []int{8, 64} {
			all = append(all, shape{batch, 8, 4, 128, 8 << 10, c, AttendInt8})
		}
		all = append(all, shape{1, 8, 4, 64, 128 << 10, c, AttendInt8})
	}
	return all
}

// fill packs random rows for every block and returns the batch.
func (s shape) fill(b *testing.B, be *Backend) (*backend.Queries, []backend.Block, int64) {
	lists, perList := s.batch*s.kvHeads, s.tokens/benchBlock
	side := int64(0)
	for i := range perList {
		side += int64(s.codingOf(i).PackedBytes(benchBlock, s.dim)+15) / 16 * 16
	}
	const rows = 4096
	src := benchAlloc(b, be, 4*rows*int64(s.dim))
	x := quanttest.Rows(quanttest.Gaussian, rows, s.dim, 1).Data
	require.NoError(b, src.Upload(0, unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*len(x))))
	q := &backend.Queries{Q: quanttest.Rows(quanttest.Gaussian, lists*s.group, s.dim, 2).Data,
		Group: s.group, HeadDim: s.dim, HeadDimV: s.dim, Scale: float32(1 / math.Sqrt(float64(s.dim))),
		BlockPtr: []int32{0}}
	var blocks []backend.Block
	var bytes int64
	for range lists {
		buf := benchAlloc(b, be, 2*side)
		var jobs []backend.EncodeJob
		at := int64(0)
		place := func(c quant.Coding, block int) backend.Side {
			n := int64(c.PackedBytes(benchBlock, s.dim))
			d := backend.Side{Coding: c, Data: backend.Span{Buf: buf, Off: at, Len: n}}
			at += (n + 15) / 16 * 16
			bytes += n
			row := block * benchBlock % rows
			jobs = append(jobs, backend.EncodeJob{Src: backend.Span{Buf: src, Off: int64(4 * row * s.dim),
				Len: int64(4 * benchBlock * s.dim)}, DType: quant.Float32, Rows: benchBlock, Dim: s.dim, Dst: d})
			return d
		}
		for i := range perList {
			c := s.codingOf(i)
			q.BlockIdx = append(q.BlockIdx, int32(len(blocks)))
			blocks = append(blocks, backend.Block{Rows: benchBlock, K: place(c, i), V: place(c, i+1)})
		}
		require.NoError(b, be.Encode(context.Background(), jobs))
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	return q, blocks, bytes
}

func BenchmarkAttend(b *testing.B) {
	be := openBench(b, AttendPlain)
	limit := copyBandwidth(b, be)
	b.Logf("%s, %s, copy on the device %.0f GB/s", be.caps.Device, be.caps.ISA, limit/1e9)
	for _, s := range benchShapes() {
		b.Run(s.name(), func(b *testing.B) {
			be := openBench(b, s.kernel)
			q, blocks, bytes := s.fill(b, be)
			out := make([]float32, q.Len()*q.Group*q.HeadDimV)
			table, err := be.NewTable(backend.Shape{HeadDim: q.HeadDim, HeadDimV: q.HeadDimV})
			require.NoError(b, err)
			require.NoError(b, table.Set(0, blocks...))
			v, err := table.View()
			require.NoError(b, err)
			step := func() error { return be.Attend(context.Background(), q, v, backend.Attention{Out: out}) }
			for range 3 {
				require.NoError(b, step())
			}
			b.SetBytes(int64(2 * 2 * s.batch * s.kvHeads * s.tokens * s.dim)) // as f16
			runTimed(b, be, step, bytes, limit)
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	be := openBench(b, AttendPlain)
	limit := copyBandwidth(b, be)
	for _, name := range []string{"lm4+s8", "lm3+s8", "lm2+s8", "u8+s8", "f16"} {
		for _, dim := range []int{64, 128} {
			b.Run(fmt.Sprintf("backend=cuda/format=%s/head_dim=%d/rows=%d", name, dim, 1<<18),
				func(b *testing.B) {
					be := openBench(b, AttendPlain)
					c, err := quant.ParseCoding(name)
					require.NoError(b, err)
					const rows, block = 1 << 18, 1 << 10
					src := benchAlloc(b, be, 2*rows*int64(dim))
					dst := benchAlloc(b, be, int64(rows/block)*(int64(c.PackedBytes(block, dim))+15)/16*16+1<<20)
					var jobs []backend.EncodeJob
					at := int64(0)
					for i := range rows / block {
						n := int64(c.PackedBytes(block, dim))
						jobs = append(jobs, backend.EncodeJob{Src: backend.Span{Buf: src,
							Off: int64(2 * i * block * dim), Len: int64(2 * block * dim)}, DType: quant.Float16,
							Rows: block, Dim: dim, Dst: backend.Side{Coding: c,
								Data: backend.Span{Buf: dst, Off: at, Len: n}}})
						at += (n + 15) / 16 * 16
					}
					b.SetBytes(2 * rows * int64(dim))
					runTimed(b, be, func() error { return be.Encode(context.Background(), jobs) },
						2*rows*int64(dim), limit)
				})
		}
	}
}

// runTimed runs a step and reports the device's time in addition to the host's.
func runTimed(b *testing.B, be *Backend, step func() error, bytes int64, limit float64) {
	b.ReportAllocs()
	total, steps := 0.0, 0
	for b.Loop() {
		d, err := be.DeviceTime(step)
		require.NoError(b, err)
		total += d.Seconds()
		steps++
	}
	each := total / float64(steps)
	b.ReportMetric(each*1e6, "kernel-us")
	b.ReportMetric(float64(bytes)/each/1e9, "GB/s")
	b.ReportMetric(float64(bytes)/each/limit, "share")
}
