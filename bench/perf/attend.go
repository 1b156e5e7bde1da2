// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// contexts are the tokens that a query attends to.
func contexts(quick bool) []int {
	if quick {
		return []int{8192}
	}
	return []int{1024, 8192, 32768}
}

// AttendName is the name of attention over a context.
func AttendName(s Shape, c Coding, tokens, threads int) string {
	return fmt.Sprintf("attend/%s/coding=%s/context=%d/threads=%d", s, c, tokens, threads)
}

// attendCases measure a layer's attention of one token over caches that lie in memory, not in a processor's cache.
func attendCases(quick bool, threads int) (all []Case) {
	for _, s := range shapes(quick) {
		for _, c := range Codings() {
			k := Case{Setup: func(ctx context.Context, e *Env) (*Ready, error) { return attendReady(ctx, e, s, c) }}
			for _, n := range contexts(quick) {
				k.Names = append(k.Names, AttendName(s, c, n, threads))
			}
			all = append(all, k)
		}
	}
	return all
}

func attendReady(ctx context.Context, e *Env, s Shape, c Coding) (*Ready, error) {
	r, err := newRig(ctx, e, s, c)
	if err != nil {
		return nil, err
	}
	out := &Ready{Close: r.table.Close}
	for _, n := range contexts(e.Quick) {
		out.Work = append(out.Work, r.attend(n, false))
	}
	return out, nil
}

// rig is a table of blocks that fill the arena: as many layers as there is room for.
type rig struct {
	env    *Env
	shape  Shape
	table  backend.Table
	view   backend.View
	blocks int
	rows   int     // of a block
	bytes  float64 // of a block on average, with its descriptor
	note   string
}

// align is where packed sides and positions start.
const align = 64

func padded(n int) int64 { return (int64(n) + align - 1) / align * align }

// newRig fills the arena with blocks of a coding.
func newRig(ctx context.Context, e *Env, s Shape, c Coding) (*rig, error) {
	kinds, err := c.kinds(s.HeadDim, e.Caps.TableBytes)
	if err != nil {
		return nil, err
	}
	round, err := e.layOut(kinds, s.HeadDim)
	if err != nil {
		return nil, err
	}
	rounds := max(1, e.WorkingSet/int64(len(round.image)))
	if err := e.fill(round.image, rounds); err != nil {
		return nil, err
	}
	table, err := e.Backend.NewTable(backend.Shape{HeadDim: s.HeadDim, HeadDimV: s.HeadDim})
	if err != nil {
		return nil, err
	}
	r := &rig{env: e, shape: s, table: table, rows: kinds[0].rows, note: describe(kinds),
		bytes: float64(round.bytes)/float64(len(kinds)) + float64(e.Caps.TableBytes)}
	for i := range rounds {
		if err := ctx.Err(); err != nil {
			_ = table.Close() // the context's error says more
			return nil, err
		}
		if err := table.Set(r.blocks, round.blocks(e.arena, i)...); err != nil {
			_ = table.Close()
			return nil, err
		}
		r.blocks += len(kinds)
	}
	r.view, err = table.View()
	return r, err
}

// round is the blocks of a mix, one after the other, as bytes and as handles.
type round struct {
	kinds []kind
	dim   int
	image []byte
	at    []int64 // of K, V and positions of each block
	bytes int64   // without padding
}

// layOut packs random rows for every kind of block.
func (e *Env) layOut(kinds []kind, dim int) (*round, error) {
	r := &round{kinds: kinds, dim: dim}
	put := func(b []byte) {
		r.at = append(r.at, int64(len(r.image)))
		r.image = append(r.image, b...)
		r.image = append(r.image, make([]byte, padded(len(b))-int64(len(b)))...)
		r.bytes += int64(len(b))
	}
	for _, k := range kinds {
		for _, c := range []quant.Coding{k.k, k.v} {
			b, err := e.pack(c, k.rows, dim)
			if err != nil {
				return nil, err
			}
			put(b)
		}
		var pos []byte
		for i := range k.rows {
			if k.pos {
				pos = append(pos, byte(i*7), byte(i*7>>8))
			}
		}
		put(pos)
	}
	return r, nil
}

// pack returns rows in a coding; the same ones for the same arguments.
func (e *Env) pack(c quant.Coding, rows, dim int) ([]byte, error) {
	key := fmt.Sprintf("%s/%d/%d", c, rows, dim)
	if b := e.packed[key]; b != nil {
		return b, nil
	}
	b := make([]byte, c.PackedBytes(rows, dim))
	if err := quant.Encode(b, c, quant.Rows{Data: gaussian(rows*dim, 1), Dim: dim}, 1); err != nil {
		return nil, err
	}
	e.packed[key] = b
	return b, nil
}

// blocks returns the handles of the i-th copy of the round.
func (r *round) blocks(buf backend.Buffer, i int64) []backend.Block {
	out := make([]backend.Block, len(r.kinds))
	for j, k := range r.kinds {
		b := &out[j]
		span := func(n, bytes int) backend.Span {
			return backend.Span{Buf: buf, Off: i*int64(len(r.image)) + r.at[3*j+n], Len: int64(bytes)}
		}
		b.Rows = int32(k.rows)
		b.Base = int64(j * k.rows)
		b.K = backend.Side{Coding: k.k, Seed: 1, Data: span(0, k.k.PackedBytes(k.rows, r.dim))}
		b.V = backend.Side{Coding: k.v, Seed: 1, Data: span(1, k.v.PackedBytes(k.rows, r.dim))}
		if k.pos {
			b.Pos = span(2, 2*k.rows)
			b.Noise = float32(k.k.NoisePerScale2())
		}
	}
	return out
}

// fill writes copies of an image to the arena, which is made when it is first needed.
func (e *Env) fill(image []byte, copies int64) error {
	if need := copies * int64(len(image)); e.arena == nil || e.arena.Len() < need {
		if e.arena != nil {
			if err := e.arena.Free(); err != nil {
				return err
			}
			e.arena = nil
		}
		a, err := e.Backend.Alloc(max(need, e.WorkingSet))
		if err != nil {
			return err
		}
		e.arena = a
	}
	const piece = 4 << 20
	n := min(copies, max(1, piece/int64(len(image))))
	many := slices.Repeat(image, int(n))
	for at := int64(0); at < copies; at += n {
		n = min(n, copies-at)
		if err := e.arena.Upload(at*int64(len(image)), many[:n*int64(len(image))]); err != nil {
			return err
		}
	}
	return nil
}

// attend returns the work of a layer's attention over a context. Each run reads another layer. It returns nil where
// the arena does not hold a context of one head.
func (r *rig) attend(tokens int, mass bool) *Work {
	per := tokens / r.rows // blocks of a head
	heads := min(r.shape.KVHeads, r.blocks/max(1, per))
	if per == 0 || heads == 0 {
		return nil
	}
	dim, group := r.shape.HeadDim, r.shape.GQA
	layers := make([]backend.Queries, r.blocks/(per*heads))
	q, pos := gaussian(heads*group*dim, 9), slices.Repeat([]int64{1 << 40}, heads)
	for l := range layers {
		x := backend.Queries{Q: q, Group: group, HeadDim: dim, HeadDimV: dim, Scale: float32(1 / math.Sqrt(float64(dim))),
			Pos: pos, BlockPtr: make([]int32, heads+1), BlockIdx: make([]int32, heads*per)}
		for i := range x.BlockIdx {
			x.BlockIdx[i] = int32(l*heads*per + i)
		}
		for h := range heads {
			x.BlockPtr[h+1] = int32((h + 1) * per)
		}
		layers[l] = x
	}
	to := backend.Attention{Out: make([]float32, heads*group*dim)}
	if mass {
		to.Mass = make([]float32, heads*per)
	}
	next, rows := 0, float64(heads*per*r.rows)
	return &Work{Unit: "row pair", Units: rows, Bytes: float64(heads*per) * r.bytes, Plain: rows * float64(4*dim),
		Memory: r.env.WorkingSet > r.env.Machine.Cache, Threads: r.env.Threads, Note: r.note,
		Run: func(ctx context.Context) error {
			l := &layers[next%len(layers)]
			next++
			return r.env.Backend.Attend(ctx, l, r.view, to)
		}}
}
