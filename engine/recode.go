// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// change lists a unit: a side of block i of a segment goes to a rung. Full batches are done at once.
func (p *pressure) change(s *segment, i, side int, to rung, units *int) error {
	c, b := p.c, &s.blocks[i]
	*units--
	c.stats.Units++
	if to == gone {
		if err := p.flush(); err != nil { // b may be among the jobs
			return err
		}
		c.stats.Dropped++
		s.lost, s.name = true, store.Key{}
		return c.free(b)
	}
	w := p
	for j := range w.n {
		if w.segs[j] == s && int(w.index[j]) == i && int(w.side[j]) == side {
			if err := p.flush(); err != nil {
				return err
			}
			break
		}
	}
	cl := c.sizes.class[side][to]
	if err := c.arena.alloc(cl, &w.to[w.n]); err != nil {
		if w.n == 0 {
			return err
		}
		if err := p.flush(); err != nil { // that frees slots
			return err
		}
		if err := c.arena.alloc(cl, &w.to[0]); err != nil {
			return err
		}
	}
	w.segs[w.n], w.index[w.n], w.side[w.n] = s, int32(i), uint8(side)
	w.rung[w.n] = to
	if w.n++; w.n == batch {
		return p.flush()
	}
	return nil
}

// flush recodes the rows of the listed units and frees what they took before.
func (p *pressure) flush() error {
	c := p.c
	w := p
	if w.n == 0 {
		return nil
	}
	err := p.recodeAll()
	for i := range w.n {
		b, side := &w.segs[i].blocks[w.index[i]], int(w.side[i])
		if err == nil {
			w.segs[i].name = store.Key{}
			c.arena.swap(&b.at[side], &w.to[i])
			b.rung[side] = w.rung[i]
		}
		if e := c.arena.release(&w.to[i]); err == nil {
			err = e
		}
		w.segs[i] = nil
	}
	w.n = 0
	return err
}

// recodeAll does the jobs of the listed units: rows in lm lose bits as they are, f16 is coded, K without its
// mean, and u8 is decoded and coded again. What has begun is not cancelled.
func (p *pressure) recodeAll() error {
	c, ctx := p.c, context.Background()
	enc, dem, at := p.encode[:0], p.demote[:0], int64(0)
	for i := range p.n {
		s, side := p.segs[i], int(p.side[i])
		b := &s.blocks[p.index[i]]
		dim, to, rows := c.sizes.dim[side], p.rung[i].coding(), pageTokens
		if b.pos != 0 {
			rows = int(b.rows)
		}
		dst := c.arena.at(p.to[i], int64(to.PackedBytes(rows, dim)))
		from := c.side(b, side, rows)
		if from.Coding.Format.Nested() && to.Format.Nested() {
			dem = append(dem, backend.DemoteJob{Src: from, To: to, Rows: rows, Dim: dim, Dst: dst})
			continue
		}
		job := backend.EncodeJob{Src: from.Data, DType: quant.Float16, Rows: rows, Dim: dim,
			Dst: backend.Side{Coding: to, Seed: c.cfg.Seed, Data: dst}}
		if side == sideK || from.Coding.Format != quant.F16 {
			n := int64(4 * rows * dim)
			if at+n > p.floats.Len() {
				if err := c.be.Encode(ctx, enc); err != nil {
					return err
				}
				enc, at = enc[:0], 0
			}
			job.Src, job.DType = backend.Span{Buf: p.floats, Off: at, Len: n}, quant.Float32
			at += n
			if err := p.unpackTo(job.Src, s, int(p.index[i]), side, rows, from, p.rung[i]); err != nil {
				return err
			}
		}
		enc = append(enc, job)
	}
	if err := c.be.Encode(ctx, enc); err != nil {
		return err
	}
	return c.be.Demote(ctx, dem)
}

// unpackTo writes the rows of a side of block i as float32, as they are to be coded in a rung.
func (p *pressure) unpackTo(at backend.Span, s *segment, i, side, rows int, from backend.Side, to rung) error {
	c, w := p.c, &p.center
	b, dim := &s.blocks[i], c.sizes.dim[side]
	if side == sideK && (b.centered() != (to != f16)) {
		if err := w.load(&c.memory, s, i/s.pages, math.MaxInt64); err != nil {
			return err
		}
	}
	if from.Coding.Format == quant.F16 {
		_, energy, err := w.center(&c.memory, b, at)
		b.energy[sideK] = energy
		return err
	}
	job := [1]backend.DecodeJob{{Src: from, Rows: rows, Dim: dim, Dst: at}}
	if err := c.be.Decode(context.Background(), job[:]); err != nil {
		return err
	}
	if side == sideK && to == f16 {
		return w.uncenter(rows, at)
	}
	return nil
}
