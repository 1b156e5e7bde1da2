// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// codecRows are coded in a call: a segment of eight heads, which stays in the caches near a core.
const codecRows = 2048

// codecCases measure coding of rows of float32, decoding to them, and demotion by a bit.
func codecCases(quick bool, threads int) (all []Case) {
	names := []string{"ggml-q8_0", "ggml-q4_0", "lm4+len+s8", "lm3+len+s8", "lm2+len+s8", "lm1+len+s8", "u8+s8", "f16"}
	dims := []int{64, 128, 256}
	if quick {
		names, dims = []string{"ggml-q8_0", "ggml-q4_0", "lm3+len+s8", "f16"}, []int{128}
	}
	for _, dim := range dims {
		for _, name := range names {
			coding, err := quant.ParseCoding(name)
			if err != nil {
				continue // the names above are right: a test codes with all of them
			}
			key := fmt.Sprintf("head_dim=%d/coding=%s/threads=%d", dim, name, threads)
			k := Case{Names: []string{"encode/" + key, "decode/" + key},
				Setup: func(ctx context.Context, e *Env) (*Ready, error) { return codecReady(ctx, e, coding, dim) }}
			if coding.Format.Nested() && coding.Format > quant.LM1 {
				k.Names = append(k.Names, "demote/"+key)
			}
			all = append(all, k)
		}
	}
	return all
}

// buffers allocates spans and frees them together.
type buffers struct {
	be  backend.Backend
	all []backend.Buffer
}

func (b *buffers) alloc(n int) (backend.Span, error) {
	m, err := b.be.Alloc(int64(n))
	if err != nil {
		return backend.Span{}, err
	}
	b.all = append(b.all, m)
	return backend.Span{Buf: m, Len: int64(n)}, nil
}

func (b *buffers) free() (err error) {
	for _, m := range b.all {
		err = errors.Join(err, m.Free())
	}
	return err
}

func codecReady(ctx context.Context, e *Env, c quant.Coding, dim int) (_ *Ready, err error) {
	b := &buffers{be: e.Backend}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.free())
		}
	}()
	const values = "value"
	n := codecRows * dim
	src, err := b.alloc(4 * n)
	if err != nil {
		return nil, err
	}
	packed, err := b.alloc(c.PackedBytes(codecRows, dim))
	if err != nil {
		return nil, err
	}
	back, err := b.alloc(4 * n)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, 0, 4*n)
	for _, x := range gaussian(n, 3) {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	if err := src.Buf.Upload(0, raw); err != nil {
		return nil, err
	}
	side := backend.Side{Coding: c, Seed: 1, Data: packed}
	encode := []backend.EncodeJob{{Src: src, DType: quant.Float32, Rows: codecRows, Dim: dim, Dst: side}}
	decode := []backend.DecodeJob{{Src: side, Rows: codecRows, Dim: dim, Dst: back}}
	work := func(bytes int64, run func(ctx context.Context) error) *Work {
		return &Work{Unit: values, Units: float64(n), Bytes: float64(bytes), Plain: float64(2 * n), Threads: e.Threads, Run: run}
	}
	out := &Ready{Close: b.free, Work: []*Work{
		work(packed.Len, func(ctx context.Context) error { return e.Backend.Encode(ctx, encode) }),
		work(packed.Len, func(ctx context.Context) error { return e.Backend.Decode(ctx, decode) }),
	}}
	if err := e.Backend.Encode(ctx, encode); err != nil { // or decoding would read nothing
		return nil, err
	}
	if !c.Format.Nested() || c.Format == quant.LM1 {
		return out, nil
	}
	less := c
	less.Format--
	dst, err := b.alloc(less.PackedBytes(codecRows, dim))
	if err != nil {
		return nil, err
	}
	demote := []backend.DemoteJob{{Src: side, To: less, Rows: codecRows, Dim: dim, Dst: dst}}
	out.Work = append(out.Work, work(packed.Len, func(ctx context.Context) error { return e.Backend.Demote(ctx, demote) }))
	return out, nil
}
