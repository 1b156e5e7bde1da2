// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// change lists a unit: side of b goes to a rung. Full batches are done at once.
func (p *pressure) change(b *block, side int, to rung, units *int) error {
	c := p.c
	*units--
	c.stats.Units++
	if to == gone {
		if err := p.flush(); err != nil { // b may be among the jobs
			return err
		}
		c.stats.Dropped++
		return c.free(b)
	}
	w := p
	for i := range w.n {
		if w.blocks[i] == b && int(w.side[i]) == side {
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
	w.blocks[w.n], w.side[w.n] = b, uint8(side)
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
		b, side := w.blocks[i], int(w.side[i])
		if err == nil {
			c.arena.swap(&b.at[side], &w.to[i])
			b.rung[side] = w.rung[i]
		}
		if e := c.arena.release(&w.to[i]); err == nil {
			err = e
		}
		w.blocks[i] = nil
	}
	w.n = 0
	return err
}

// recodeAll does the jobs of the listed units: rows in lm lose bits as they are, f16 is coded, and u8 is
// decoded and coded again. What has begun is not cancelled.
func (p *pressure) recodeAll() error {
	c := p.c
	w, ctx := p, context.Background()
	enc, dec, dem, at := w.encode[:0], w.decode[:0], w.demote[:0], int64(0)
	again := func() error { // codes what is in the buffer
		if err := c.be.Decode(ctx, dec); err != nil {
			return err
		}
		err := c.be.Encode(ctx, enc)
		enc, dec, at = enc[:0], dec[:0], 0
		return err
	}
	for i := range w.n {
		b, side := w.blocks[i], int(w.side[i])
		dim, to, rows := c.sizes.dim[side], w.rung[i].coding(), pageTokens
		if b.pos != 0 {
			rows = int(b.rows)
		}
		dst := c.arena.at(w.to[i], int64(to.PackedBytes(rows, dim)))
		from := c.side(b, side, rows)
		job := backend.EncodeJob{Src: from.Data, DType: quant.Float16, Rows: rows, Dim: dim,
			Dst: backend.Side{Coding: to, Seed: c.cfg.Seed, Data: dst}}
		switch n := int64(4 * rows * dim); {
		case from.Coding.Format.Nested() && to.Format.Nested():
			dem = append(dem, backend.DemoteJob{Src: from, To: to, Rows: rows, Dim: dim, Dst: dst})
			continue
		case from.Coding.Format != quant.F16:
			if at+n > w.floats.Len() {
				if err := again(); err != nil {
					return err
				}
			}
			job.Src, job.DType = backend.Span{Buf: w.floats, Off: at, Len: n}, quant.Float32
			dec = append(dec, backend.DecodeJob{Src: from, Rows: rows, Dim: dim, Dst: job.Src})
			at += n
		}
		enc = append(enc, job)
	}
	if err := again(); err != nil {
		return err
	}
	return c.be.Demote(ctx, dem)
}
