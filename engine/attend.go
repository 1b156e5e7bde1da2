// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Attend computes the attention of the step's tokens in one layer: q [tokens, heads, head_dim] with RoPE
// applied, out [tokens, heads, head_dim_v]. Query i sees its own token and those before it in its
// sequence. out must not overlap q.
//
// Whether a query reads a token exact or packed depends on their positions only, not on how the tokens
// were divided into steps.
//
// Errors: quant.ErrShape for wrong lengths, or a layer without rows or with its queries done;
// quant.ErrClosed; those of the backend.
func (st Step) Attend(layer int, q, out []float32) error {
	const call = "attend"
	s, err := st.enter(call, layer)
	if err != nil {
		return err
	}
	c := s.c
	defer c.mu.RUnlock()
	g := c.geo
	if len(q) != s.tokens*g.Heads*g.HeadDim || len(out) != s.tokens*g.Heads*g.HeadDimV {
		return fail(call, s.one(), "layer %d: q of %d values, out of %d, want %d and %d: %w", layer, len(q),
			len(out), s.tokens*g.Heads*g.HeadDim, s.tokens*g.Heads*g.HeadDimV, quant.ErrShape)
	}
	for i, more := 0, true; more; i++ {
		if more, err = s.round(layer, i, q, out); err != nil {
			s.failed = err // some pages of the layer may have left the window
			return wrap(call, s.one(), fmt.Errorf("layer %d: %w", layer, err))
		}
	}
	s.done[layer] |= hasAttended
	return nil
}

// group returns the i-th group of a row's tokens, [lo, hi) of the row: at most a page, and no page leaves
// the window within it.
func (s *step) group(r *stepRow, i int) (lo, hi int) {
	phase := (r.seq.exactFrom() - r.from) % pageTokens // pages leave the window where others begin
	if phase <= 0 {
		phase += pageTokens
	}
	first := int(phase)
	if i > 0 {
		lo = first + (i-1)*pageTokens
	}
	return min(lo, r.n), min(first+i*pageTokens, r.n)
}

// round attends to the i-th group of every row. more reports whether rows have tokens left.
func (s *step) round(layer, i int, q, out []float32) (more bool, err error) {
	l, c := &s.lists, s.c
	g := c.geo
	l.pos, l.ptr, l.idx = l.pos[:0], append(l.ptr[:0], 0), l.idx[:0]
	single := true
	for j := range s.rows {
		r := &s.rows[j]
		lo, hi := s.group(r, i)
		if lo == hi {
			continue
		}
		if err := s.advance(layer, r, r.from+int64(lo)); err != nil {
			return false, err
		}
		if err := s.showChanged(layer, r); err != nil {
			return false, err
		}
		s.list(layer, r, lo, hi)
		more = more || hi < r.n
		single = single && r.n == 1
	}
	n := len(l.pos)
	if n == 0 {
		return false, nil
	}
	group := g.GQARatio()
	x, res := q, out
	if !single {
		x, res = l.x[:n*group*g.HeadDim], l.out[:n*group*g.HeadDimV]
		s.permute(i, q)
	}
	l.q = backend.Queries{Q: x, Group: group, HeadDim: g.HeadDim, HeadDimV: g.HeadDimV, Scale: c.cfg.Scale,
		Softcap: c.cfg.Softcap, Pos: l.pos, Window: c.cfg.layerWindow(layer), BlockPtr: l.ptr, BlockIdx: l.idx}
	l.lse = l.lse[:n*group]
	v, err := c.tables.all[layer].View()
	if err == nil {
		err = c.be.Attend(s.ctx, &l.q, v, backend.Attention{Out: res, LSE: l.lse})
	}
	if err != nil {
		return false, err
	}
	s.collect(layer, i, q, out, !single)
	return more, nil
}

// list appends the queries of tokens [lo, hi) of a row, head by head, and the blocks that they see: all of
// a page that is not full yet too, because queries do not see what lies behind them, and which rows share a
// page with a token must not depend on the step that brought them.
func (s *step) list(layer int, r *stepRow, lo, hi int) {
	l, c := &s.lists, s.c
	g := c.geo
	past, end := r.seq.horizon(layer, r.from+int64(lo)), r.from+int64(hi)
	for h := range g.KVHeads {
		first := len(l.idx)
		for _, seg := range r.seq.segs {
			if seg.hi() <= past || seg.lo >= end {
				continue
			}
			n := seg.pages
			if !seg.closed {
				n = min(n, int(end-seg.lo+int64(seg.per)-1)/seg.per)
			}
			at := int32(seg.room - 1 + h*seg.pages)
			blocks := seg.of(layer, h, g.KVHeads)[:n]
			for p := range blocks {
				if blocks[p].at[sideK] != 0 {
					l.idx = append(l.idx, at+int32(p))
				}
			}
		}
		list := l.idx[first:]
		for t := lo; t < hi; t++ {
			if t > lo {
				l.idx = append(l.idx, list...)
			}
			l.ptr = append(l.ptr, int32(len(l.idx)))
			l.pos = append(l.pos, r.from+int64(t))
		}
	}
}

// showChanged sets the entries of a layer that changed since the step began: pages that left the window,
// and rows that moved when another step ended. Their slots stay marked, because other steps may read them.
func (s *step) showChanged(layer int, r *stepRow) error {
	now := s.c.arena.changes.Load()
	for _, seg := range r.seq.segs {
		if seg.shown == now {
			continue
		}
		if err := s.c.tables.showLayer(&s.c.memory, seg, layer, s.lists.blocks); err != nil {
			return err
		}
	}
	return nil
}

// permute brings the queries of a round from [tokens, heads] to the order of list.
func (s *step) permute(i int, q []float32) {
	g := s.c.geo
	run, at := g.GQARatio()*g.HeadDim, 0
	for j := range s.rows {
		r := &s.rows[j]
		lo, hi := s.group(r, i)
		for h := range g.KVHeads {
			for t := lo; t < hi; t++ {
				copy(s.lists.x[at:at+run], q[((r.at+t)*g.KVHeads+h)*run:])
				at += run
			}
		}
	}
}

// collect brings outputs back to [tokens, heads] and keeps the queries that are kept.
func (s *step) collect(layer, i int, q, out []float32, permuted bool) {
	c, g := s.c, s.c.geo
	group := g.GQARatio()
	run, at := group*g.HeadDimV, 0
	for j := range s.rows {
		r := &s.rows[j]
		lo, hi := s.group(r, i)
		for h := 0; permuted && h < g.KVHeads; h++ {
			for t := lo; t < hi; t++ {
				copy(out[((r.at+t)*g.KVHeads+h)*run:][:run], s.lists.out[(at+h*(hi-lo)+t-lo)*run:])
			}
		}
		for t := lo; t < hi; t++ {
			if p := r.from + int64(t) + 1; p%int64(c.stride) == 0 {
				tok := r.at + t
				e := c.put(&r.kept, layer, p/int64(c.stride)-1, q[tok*g.Heads*g.HeadDim:],
					out[tok*g.Heads*g.HeadDimV:])
				for h := range g.KVHeads {
					k := (at + h*(hi-lo) + t - lo) * group
					copy(r.kept.lse[e*g.Heads+h*group:][:group], s.lists.lse[k:])
				}
			}
		}
		at += g.KVHeads * (hi - lo)
	}
}

// advance does to a row in one layer what happens before the query at position p: pages that are a
// window behind it are packed, and segments of which every page is close.
func (s *step) advance(layer int, r *stepRow, p int64) error {
	q, g := r.seq, s.c.geo
	for int(r.past[layer]) < r.leaves {
		k := int(r.past[layer])
		at := q.exactFrom() + int64(k)*pageTokens
		if at+pageTokens+int64(s.c.cfg.Window) > p {
			return nil
		}
		seg, page := q.find(at)
		if err := s.pack(layer, r, k, seg, page, p); err != nil {
			return err
		}
		closes := page == seg.pages-1
		if closes {
			if err := s.weigh(layer, r, seg, p); err != nil {
				return err
			}
		}
		for h := range g.KVHeads {
			s.c.exchange(&seg.of(layer, h, g.KVHeads)[page], s.spareOf(r, k, layer, h))
		}
		r.past[layer]++
		if closes {
			if err := s.close(layer, r, seg); err != nil {
				return err
			}
		}
	}
	return nil
}

// advanceAll does it for every row up to its end.
func (s *step) advanceAll(layer int) error {
	for i := range s.rows {
		r := &s.rows[i]
		for p := r.from; p < r.from+int64(r.n); p++ {
			if err := s.advance(layer, r, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// spareOf returns the spare of the k-th leaving page of a row.
func (s *step) spareOf(r *stepRow, k, layer, head int) *spare {
	g := s.c.geo
	return &s.spares[r.spare+(k*g.Layers+layer)*g.KVHeads+head]
}

// pack codes a page of a layer into its spare.
func (s *step) pack(layer int, r *stepRow, k int, seg *segment, page int, p int64) error {
	c, g := s.c, s.c.geo
	if s.start == [sides]rung{f16, f16} {
		return nil
	}
	s.enc = s.enc[:0]
	for h := range g.KVHeads {
		b, sp := &seg.of(layer, h, g.KVHeads)[page], s.spareOf(r, k, layer, h)
		for side, dim := range c.sizes.dim {
			if sp.at[side] == 0 {
				continue
			}
			job := c.recode(b.at[side], sp.at[side], sp.rung[side], dim)
			if side == sideK {
				if err := s.center.load(&c.memory, seg, layer*g.KVHeads+h, p); err != nil {
					return err
				}
				n := int64(4 * pageTokens * dim)
				job.Src, job.DType = backend.Span{Buf: s.stage, Off: int64(h) * n, Len: n}, quant.Float32
				if _, _, err := s.center.center(&c.memory, b, job.Src); err != nil {
					return err
				}
			}
			s.enc = append(s.enc, job)
		}
	}
	return c.be.Encode(s.ctx, s.enc)
}

// closingGrowth returns the bytes of the scratch memory that the step will take, if none is unused.
func (s *step) closingGrowth() int64 {
	if s.need.closes && len(s.c.closings) == 0 {
		return s.c.closingBytes()
	}
	return 0
}

// takeClosing gives the step scratch memory to close segments with.
func (s *step) takeClosing() (err error) {
	if s.need.closes {
		s.closing, err = s.c.takeClosing()
	}
	return err
}

// weigh sets the weights of a segment's rows in a layer to the root mean square attention of the kept
// queries before position p. Where there are none the weights are zero, which keeps rows in order.
func (s *step) weigh(layer int, r *stepRow, seg *segment, p int64) error {
	c, w := s.c, s.closing
	n := c.keptBefore(w, layer, p, &r.kept, &r.seq.kept)
	return c.relevance(s.ctx, w, layer, seg, n)
}

// spotsOf returns the memory for positions of the segment at lo, [layers, kv_heads, pages].
func (s *step) spotsOf(r *stepRow, lo int64) []slot {
	c := s.c
	i := 0
	for _, seg := range r.seq.segs {
		if !seg.closed && !seg.sinks {
			i = int((lo - seg.lo) / int64(c.cfg.Segment))
			break
		}
	}
	n := c.geo.Layers * c.geo.KVHeads * c.segPages()
	return s.spots[r.spot+i*n : r.spot+(i+1)*n]
}

// close sorts the rows of a layer of a segment by the weights in w.weight, head by head: the heaviest
// rows come first. The step can be rolled back.
func (s *step) close(layer int, r *stepRow, seg *segment) error {
	c, g, w := s.c, s.c.geo, s.closing
	spots := s.spotsOf(r, seg.lo)
	for h := range g.KVHeads {
		blocks := seg.of(layer, h, g.KVHeads)
		if err := w.sortRows(&c.memory, blocks, w.weight[h*c.cfg.Segment:(h+1)*c.cfg.Segment]); err != nil {
			return err
		}
		for i := range blocks {
			b := &blocks[i]
			c.arena.swap(&b.pos, &spots[(layer*g.KVHeads+h)*seg.pages+i])
			if err := c.putPositions(b, w.perm[i*pageTokens:(i+1)*pageTokens], w.to); err != nil {
				return err
			}
		}
	}
	return nil
}
