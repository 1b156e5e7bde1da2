// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Row says how many tokens a step adds to a sequence.
type Row struct {
	Seq    *Sequence
	Tokens int
	// IDs [Tokens] are the ids of the tokens, so that other sequences can share them; see
	// Cache.MatchPrefix. They must not change until Commit. nil: they are not shared.
	IDs []int32
}

// Step adds tokens to one or many sequences. For every layer, Append takes the rows and Attend the
// queries of the new tokens; then Commit keeps them or Rollback forgets them. The zero Step is finished.
// A Step belongs to one goroutine.
type Step struct {
	s   *step
	gen uint64
}

// step is the memory of a step. It is used again by later steps.
type step struct {
	c      *Cache
	gen    uint64
	ctx    context.Context
	rows   []stepRow
	tokens int
	start  [sides]rung
	done   []uint8 // by layer: hasAppended, hasAttended
	failed error   // of Attend: the step can only be rolled back
	need   demand

	stage      backend.Buffer // K and V of a layer as they came
	stageBytes int64
	host       []byte
	enc        []backend.EncodeJob
	lists      lists
	closing    *closing  // while the step closes segments
	center     centering // while pages leave the window
	spares     []spare   // [rows' leaving pages, layers, kv_heads]
	spots      []slot    // [rows' closing segments, layers, kv_heads, pages]
}

const (
	hasAppended = 1 << iota
	hasAttended
)

// spare is the other copy of the rows of a page that leaves the window: the packed one before, and the
// exact one after. The exact rows stay until the step is committed, so that it can be rolled back.
type spare struct {
	at   [sides]slot
	rung [sides]rung
}

// stepRow is what a step does to one sequence.
type stepRow struct {
	seq    *Sequence
	n, at  int   // tokens, and the first one's number in the step
	from   int64 // committed tokens before
	ids    []int32
	leaves int   // pages that leave the window
	closes int   // segments that close
	spare  int   // first of the row's spares
	spot   int   // first of the row's spots
	grows  int64 // bytes of rows that the sequence takes
	past   []int32
	kept   kept
}

// Begin starts a step. It takes all memory that the step needs, and makes room for it if the budget is
// used up; so a step that has begun does not run out of memory. ctx is that of every call of the step.
//
// Errors: quant.ErrShape for no rows, no tokens, a sequence named twice, of another cache, or with a
// step under way; quant.ErrBudget if so many tokens never fit the budget; quant.ErrFull if nothing is
// left to give; quant.ErrClosed; those of the backend. No token is added then.
func (c *Cache) Begin(ctx context.Context, rows []Row) (Step, error) {
	const call = "begin"
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(call); err != nil {
		return Step{}, err
	}
	tokens, err := c.checkRows(rows)
	if err != nil {
		return Step{}, err
	}
	for i := range rows { // their open segments must stay as the step plans them
		rows[i].Seq.resting, rows[i].Seq.used = false, c.stats.Steps
	}
	s := c.takeStep(ctx, tokens)
	if err = s.plan(rows); err == nil {
		err = c.pressure.keepLimits(s)
	}
	if err == nil {
		err = s.reserve()
	}
	if err != nil {
		seq := s.one()
		s.retire()
		c.refuse(call, seq, err)
		return Step{}, wrap(call, seq, err)
	}
	if err := s.take(); err != nil {
		seq := s.one()
		if e := c.broken(s.finish(0)); e != nil {
			err = fmt.Errorf("%w (and then: %w)", err, e)
		}
		return Step{}, wrap(call, seq, err)
	}
	return Step{s, s.gen}, nil
}

func (c *Cache) checkRows(rows []Row) (tokens int, err error) {
	const call = "begin"
	if len(rows) == 0 {
		return 0, fail(call, 0, "no rows: %w", quant.ErrShape)
	}
	for i := range rows {
		r := &rows[i]
		switch {
		case r.Seq == nil || r.Seq.c != c:
			return 0, fail(call, 0, "row %d: the sequence belongs to another cache: %w", i, quant.ErrShape)
		case r.Tokens < 1 || r.Tokens > 1<<20:
			return 0, fail(call, r.Seq.id, "row %d: %d tokens, want 1 to %d: %w", i, r.Tokens, 1<<20,
				quant.ErrShape)
		case r.IDs != nil && len(r.IDs) != r.Tokens:
			return 0, fail(call, r.Seq.id, "row %d: %d ids of %d tokens: %w", i, len(r.IDs), r.Tokens, quant.ErrShape)
		case r.Seq.n > quant.MaxTokens-int64(r.Tokens):
			return 0, fail(call, r.Seq.id, "row %d: %d tokens beside %d: %w", i, r.Tokens, r.Seq.n,
				quant.ErrTooLarge)
		}
		if err := r.Seq.ready(call); err != nil {
			return 0, err
		}
		for j := range i {
			if rows[j].Seq == r.Seq {
				return 0, fail(call, r.Seq.id, "rows %d and %d name it: %w", j, i, quant.ErrShape)
			}
		}
		tokens += r.Tokens
	}
	return tokens, nil
}

// takeStep returns an unused step, the one that was used last: its lists are of the right size.
func (c *Cache) takeStep(ctx context.Context, tokens int) *step {
	var s *step
	if n := len(c.steps); n > 0 {
		s, c.steps[n-1] = c.steps[n-1], nil
		c.steps = c.steps[:n-1]
	} else {
		s = &step{c: c}
	}
	s.ctx, s.tokens, s.start, s.failed = ctx, tokens, c.start, nil
	s.gen++
	return s
}

// Append takes K and V of the step's tokens in one layer: k [tokens, kv_heads, head_dim], v [tokens,
// kv_heads, head_dim_v], or with the axes of Config.Layout; the tokens of the rows of the step one after
// the other. They are stored as binary16 and may be reused when the call returns.
//
// Errors: quant.ErrShape for wrong lengths, a wrong layer, or a layer that has its rows; quant.ErrRange
// for values that binary16 cannot hold; quant.ErrClosed; those of the backend.
func (st Step) Append(layer int, k, v []float32) error {
	s, err := st.enter("append", layer)
	if err != nil {
		return err
	}
	defer s.c.mu.RUnlock()
	g := s.c.geo
	if len(k) != s.tokens*g.KVHeads*g.HeadDim || len(v) != s.tokens*g.KVHeads*g.HeadDimV {
		return fail("append", s.one(), "layer %d: k of %d values, v of %d, want %d and %d: %w", layer, len(k),
			len(v), s.tokens*g.KVHeads*g.HeadDim, s.tokens*g.KVHeads*g.HeadDimV, quant.ErrShape)
	}
	putFloats(s.host, k)
	putFloats(s.host[4*len(k):], v)
	return s.store(layer, quant.Float32, 4*(len(k)+len(v)))
}

// AppendBytes is Append for rows in little-endian float32, binary16 or bfloat16.
//
// Errors: as Append; quant.ErrUnsupported for another type.
func (st Step) AppendBytes(layer int, t quant.DType, k, v []byte) error {
	s, err := st.enter("append", layer)
	if err != nil {
		return err
	}
	defer s.c.mu.RUnlock()
	g, size := s.c.geo, t.Size()
	if size == 0 {
		return fail("append", s.one(), "layer %d: element type %s: %w", layer, t, quant.ErrUnsupported)
	}
	wantK, wantV := s.tokens*g.KVHeads*g.HeadDim*size, s.tokens*g.KVHeads*g.HeadDimV*size
	if len(k) != wantK || len(v) != wantV {
		return fail("append", s.one(), "layer %d: k of %d bytes, v of %d, want %d and %d: %w", layer, len(k),
			len(v), wantK, wantV, quant.ErrShape)
	}
	copy(s.host, k)
	copy(s.host[len(k):], v)
	return s.store(layer, t, len(k)+len(v))
}

// enter checks that the step is under way and the layer is one, and takes the cache's lock for reading.
func (st Step) enter(call string, layer int) (*step, error) {
	s := st.s
	if s == nil {
		return nil, closed(call, 0, "step")
	}
	c := s.c
	c.mu.RLock()
	err := c.usable(call)
	switch {
	case err != nil:
	case s.gen != st.gen:
		err = closed(call, 0, "step")
	case call == "attend" && s.failed != nil:
		err = fail(call, s.one(), "the step can only be rolled back, because a call failed: %w", s.failed)
	case layer < 0 || layer >= c.geo.Layers:
		err = fail(call, s.one(), "layer %d of %d: %w", layer, c.geo.Layers, quant.ErrShape)
	case call == "append" && s.done[layer]&hasAppended != 0:
		err = fail(call, s.one(), "layer %d has its rows: %w", layer, quant.ErrShape)
	case call == "attend" && s.done[layer]&hasAppended == 0:
		err = fail(call, s.one(), "layer %d has no rows yet: %w", layer, quant.ErrShape)
	case call == "attend" && s.done[layer]&hasAttended != 0:
		err = fail(call, s.one(), "layer %d has had its queries: %w", layer, quant.ErrShape)
	}
	if err != nil {
		c.mu.RUnlock()
		return nil, err
	}
	return s, nil
}

// one returns the number of the step's only sequence, 0 if there are more.
func (s *step) one() uint64 {
	if len(s.rows) != 1 {
		return 0
	}
	return s.rows[0].seq.id
}

// store moves n bytes of K and V to the pages of a layer. Encode rounds float32 and bfloat16 to
// binary16 and refuses what that cannot hold.
func (s *step) store(layer int, t quant.DType, n int) error {
	const call = "append"
	if err := s.stage.Upload(0, s.host[:n]); err != nil {
		return wrap(call, s.one(), err)
	}
	s.enc = s.enc[:0]
	for i := range s.rows {
		s.storeRow(layer, t, &s.rows[i])
	}
	if err := s.c.be.Encode(s.ctx, s.enc); err != nil {
		return wrap(call, s.one(), fmt.Errorf("layer %d: %w", layer, err))
	}
	s.done[layer] |= hasAppended
	return nil
}

// storeRow lists the jobs that store the new tokens of one sequence.
func (s *step) storeRow(layer int, t quant.DType, r *stepRow) {
	g := s.c.geo
	for i := range r.seq.segs {
		seg := r.seq.segs[i]
		if seg.closed || seg.hi() <= r.from {
			continue
		}
		lo, hi := max(seg.lo, r.from), min(seg.hi(), r.from+int64(r.n))
		for lo < hi {
			page := int(lo-seg.lo) / seg.per
			first := int(lo-seg.lo) % seg.per
			n := min(seg.per-first, int(hi-lo))
			for h := range g.KVHeads {
				b := &seg.of(layer, h, g.KVHeads)[page]
				s.storePage(t, r.at+int(lo-r.from), h, n, first, b)
			}
			lo += int64(n)
		}
	}
}

// storePage lists the jobs for n tokens from number tok of the step, head h, to row first of a block.
func (s *step) storePage(t quant.DType, tok, h, n, first int, b *block) {
	g, base := s.c.geo, int64(0)
	for side, dim := range s.c.sizes.dim {
		row := int64(dim * t.Size())
		off, stride := int64(tok*g.KVHeads+h)*row, int64(g.KVHeads)*row
		if s.c.cfg.Layout == HND {
			off, stride = int64(h*s.tokens+tok)*row, row
		}
		dst := s.c.arena.at(b.at[side], int64((first+n)*dim*2))
		dst.Off += int64(first * dim * 2)
		dst.Len = int64(n * dim * 2)
		s.enc = append(s.enc, backend.EncodeJob{DType: t, Rows: n, Dim: dim, Stride: stride,
			Src: backend.Span{Buf: s.stage, Off: base + off, Len: int64(n-1)*stride + row},
			Dst: backend.Side{Coding: f16.coding(), Data: dst}})
		base += int64(s.tokens*g.KVHeads) * row
	}
}

// Commit keeps the first n tokens of every row of the step and forgets the others; n larger than a
// row's tokens keeps all of them. Then it makes room where the budget asks for it, a bounded number of
// units at a time. Every layer must have its rows.
//
// A step of more tokens than the window is kept as a whole or not at all: the queries that would weigh
// the tokens of a part are not kept.
//
// Errors: quant.ErrShape for a negative n, a layer without rows, or a part of a long step; quant.ErrClosed;
// those of the backend.
func (st Step) Commit(n int) error {
	const call = "commit"
	s, err := st.leave(call)
	if err != nil {
		return err
	}
	c := s.c
	defer c.mu.Unlock()
	if n < 0 {
		return fail(call, s.one(), "%d tokens, want 0 or more: %w", n, quant.ErrShape)
	}
	if s.failed != nil {
		return fail(call, s.one(), "the step can only be rolled back, because a call failed: %w", s.failed)
	}
	for l := range s.done {
		if s.done[l]&hasAppended == 0 {
			return fail(call, s.one(), "layer %d has no rows: %w", l, quant.ErrShape)
		}
	}
	for i := range s.rows {
		if r := &s.rows[i]; n < r.n && r.n > c.cfg.Window {
			return fail(call, r.seq.id, "%d tokens of a step of %d, which is longer than the window of %d: %w",
				n, r.n, c.cfg.Window, quant.ErrShape)
		}
	}
	s.ctx = context.Background() // what is half done cannot be cancelled
	for l := range s.done {      // queries are optional; what they would have seen is not
		if s.done[l]&hasAttended == 0 {
			if err := s.advanceAll(l); err != nil {
				return wrap(call, s.one(), c.broken(err))
			}
		}
	}
	if err := c.broken(s.finish(n)); err != nil {
		return wrap(call, 0, err)
	}
	c.stats.Steps++
	return wrap(call, 0, c.broken(c.pressure.relieve()))
}

// Rollback forgets the tokens of the step.
//
// Errors: quant.ErrClosed; those of the backend.
func (st Step) Rollback() error {
	s, err := st.leave("rollback")
	if err != nil {
		return err
	}
	defer s.c.mu.Unlock()
	return wrap("rollback", 0, s.c.broken(s.finish(0)))
}

// leave takes the cache's lock for writing.
func (st Step) leave(call string) (*step, error) {
	if st.s == nil {
		return nil, closed(call, 0, "step")
	}
	c := st.s.c
	c.mu.Lock()
	err := c.usable(call)
	if err == nil && st.s.gen != st.gen {
		err = closed(call, 0, "step")
	}
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	return st.s, nil
}

// putFloats writes little-endian float32.
func putFloats(dst []byte, x []float32) {
	dst = dst[:4*len(x)]
	for i, v := range x {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}
