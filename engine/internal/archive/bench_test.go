// SPDX-License-Identifier: Apache-2.0

//go:build unix

package archive

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// benchSegment is a segment of 512 tokens of one head, head_dim 64, whose components fall off as
// those of a real cache do: half a decade for every eight.
func benchSegment(b *testing.B) (*Codec, *Segment) {
	const dim, tokens = 64, 512
	rng := rand.New(rand.NewPCG(1, 9))
	p := &Params{Fine: 1, Ropes: NewRopes(quant.Geometry{Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 1e5}}), Own: true}
	for k := range p.Class8 {
		p.Class8[k] = int8(4 * (7 - k))
	}
	seg := &Segment{Dims: []int{dim, dim}, Step8: []int{0, 0}, Class: [][]uint8{make([]uint8, tokens)}}
	set := &Set{Tables: DefaultTables(), Heads: 1, Sides: 2, Layers: []int{0}, Transforms: [][]*Transform{nil}}
	for i := range tokens {
		seg.Pos = append(seg.Pos, int64(i))
		seg.Class[0][i] = uint8(4 + rng.IntN(7))
	}
	for range 2 {
		x := make([]float32, tokens*dim)
		for i := range x {
			x[i] = float32(rng.NormFloat64() * math.Pow(10, -float64(i%dim)/16))
		}
		m := NewMoments(dim, true)
		m.Add(x)
		set.Transforms[0] = append(set.Transforms[0], FitTransform(m, nil, true))
		seg.Rows = append(seg.Rows, x)
	}
	p.Set = set
	c, err := NewCodec(p, true)
	if err != nil {
		b.Fatal(err)
	}
	return c, seg
}

// Bytes are those of the rows as f16.
func BenchmarkEncode(b *testing.B) {
	for _, step := range []int{-12, -20} {
		c, seg := benchSegment(b)
		size := 0
		b.Run(fmt.Sprintf("head_dim=64/tokens=512/step8=%d", step), func(b *testing.B) {
			b.SetBytes(2 * 2 * 512 * 64)
			work := clone(seg)
			start := cpuTime()
			for b.Loop() {
				for i := range work.Rows {
					copy(work.Rows[i], seg.Rows[i])
				}
				p, err := c.Prepare(work)
				if err != nil {
					b.Fatal(err)
				}
				size = len(c.Encode(nil, p, step, Effort{Lambda: 0.12}))
			}
			perCore(b, start)
			b.ReportMetric(8*float64(size)/(2*512*64), "bits/value")
		})
	}
}

// cpuTime returns the processor time that the process has used: on a machine that others share
// it tells more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func perCore(b *testing.B, start time.Duration) {
	if d := cpuTime() - start; d > 0 {
		b.ReportMetric(float64(b.N)*2*2*512*64/1e6/d.Seconds(), "cpu-MB/s")
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, step := range []int{-12, -20} {
		c, seg := benchSegment(b)
		p, err := c.Prepare(clone(seg))
		if err != nil {
			b.Fatal(err)
		}
		payload := c.Encode(nil, p, step, Effort{Lambda: 0.12})
		b.Run(fmt.Sprintf("head_dim=64/tokens=512/step8=%d", step), func(b *testing.B) {
			b.SetBytes(2 * 2 * 512 * 64)
			out := emptyLike(seg)
			start := cpuTime()
			for b.Loop() {
				if err := c.Decode(out, payload, nil); err != nil {
					b.Fatal(err)
				}
			}
			perCore(b, start)
			b.ReportMetric(8*float64(len(payload))/(2*512*64), "bits/value")
		})
	}
}

func BenchmarkLossless(b *testing.B) {
	_, seg := benchSegment(b)
	var lanes []LosslessLane
	for _, x := range seg.Rows {
		l := LosslessLane{Dim: 64, Data: make([]byte, 2*len(x))}
		for i, v := range x {
			h := quant.F32ToF16(v)
			l.Data[2*i], l.Data[2*i+1] = byte(h), byte(h>>8)
		}
		lanes = append(lanes, l)
	}
	var payload []byte
	b.Run("op=encode", func(b *testing.B) {
		b.SetBytes(2 * 2 * 512 * 64)
		start := cpuTime()
		defer func() { perCore(b, start) }()
		for b.Loop() {
			payload = EncodeLossless(payload[:0], lanes, 2)
		}
	})
	b.Run("op=decode", func(b *testing.B) {
		b.SetBytes(2 * 2 * 512 * 64)
		back := slices.Clone(lanes)
		start := cpuTime()
		defer func() { perCore(b, start) }()
		for b.Loop() {
			if err := DecodeLossless(back, payload, 2); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchPredicted is a segment of three heads that have much in common, and their codec with predictors.
func benchPredicted(b *testing.B) (*Codec, *Segment) {
	c, one := benchSegment(b)
	rng := rand.New(rand.NewPCG(2, 9))
	set := &Set{Tables: c.Set.Tables, Heads: 3, Sides: 2, Layers: []int{0}, Transforms: [][]*Transform{nil}}
	seg := &Segment{Pos: one.Pos, Dims: one.Dims}
	for lane := range 6 {
		x := slices.Clone(one.Rows[0])
		for i := range x {
			x[i] += 0.5 * float32(rng.NormFloat64()*math.Pow(10, -float64(i%64)/16))
		}
		seg.Rows, seg.Step8 = append(seg.Rows, x), append(seg.Step8, 0)
		if lane%2 == 0 {
			rope := c.Ropes.Of(0)
			rope.Redo(x, 64, seg.Pos)
			seg.Class = append(seg.Class, one.Class[0])
		}
		set.Transforms[0] = append(set.Transforms[0], c.Set.Transforms[0][lane%2])
	}
	p := *c.Params
	p.Set, p.Own = set, false
	plain, err := NewCodec(&p, true)
	if err != nil {
		b.Fatal(err)
	}
	made, err := plain.Prepare(clone(seg))
	if err != nil {
		b.Fatal(err)
	}
	pairing := NewPairing(set.Transforms[0], 2)
	pairing.Add(plain, made, -16, Effort{Lambda: 0.12}, 0)
	p.Set, p.Predict = set.WithThese([][]*Predictor{pairing.Predictors(0.1)}), true
	with, err := NewCodec(&p, true)
	if err != nil {
		b.Fatal(err)
	}
	return with, seg
}

// Bytes are those of the rows as f16.
func BenchmarkPredicted(b *testing.B) {
	for _, op := range []string{"encode", "decode"} {
		for _, step := range []int{-12, -20} {
			c, seg := benchPredicted(b)
			p, err := c.Prepare(clone(seg))
			if err != nil {
				b.Fatal(err)
			}
			payload := c.Encode(nil, p, step, Effort{Lambda: 0.12})
			b.Run(fmt.Sprintf("op=%s/heads=3/head_dim=64/tokens=512/step8=%d", op, step), func(b *testing.B) {
				b.SetBytes(3 * 2 * 2 * 512 * 64)
				out, work := emptyLike(seg), clone(seg)
				start := cpuTime()
				for b.Loop() {
					if op == "decode" {
						err = c.Decode(out, payload, nil)
					} else {
						for i := range work.Rows {
							copy(work.Rows[i], seg.Rows[i])
						}
						p, err = c.Prepare(work)
						payload = c.Encode(payload[:0], p, step, Effort{Lambda: 0.12})
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				if d := cpuTime() - start; d > 0 {
					b.ReportMetric(float64(b.N)*3*2*2*512*64/1e6/d.Seconds(), "cpu-MB/s")
				}
				b.ReportMetric(8*float64(len(payload))/(3*2*512*64), "bits/value")
			})
		}
	}
}
