// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// How a batch is divided. These numbers decide the order of sums, so the division depends only on
// each query's own list.
const (
	// unitHeads is the number of query heads that share an unpacked tile, if neighbouring queries
	// have the same list. Unpacking then costs little beside the products, and the heads'
	// accumulators stay in the second-level cache.
	unitHeads = 32
	// chunkRows is the smallest number of rows in a piece, maxChunks the largest number of pieces
	// in a list: enough for many workers, and a bound on scratch memory. A piece costs half a
	// microsecond beside its rows.
	chunkRows = 2048
	maxChunks = 64
	// waveFloats bounds the memory for partial results at any time, in float64 values: 16 MiB.
	waveFloats = 2 << 20
)

// scratch is the scratch memory of one worker.
type scratch struct {
	scorer
	vt     []float32 // [tileRows, padV]
	vb     []byte    // [tileRows, head_dim_v], for tiles of bytes
	vscale [tileRows]float32
	before []float32      // [heads]: the largest scores before a tile
	tally  [tallies]tally // [heads]: those of the current entry
	cuts   attend.Weights // weights of the heads, in digits
	side   [sides]sums    // indexed by the form of unpacked V
	tileV  tileV
	tiles  int    // of the piece so far
	group  uint32 // of the mean tally
	runner runner
	acc    []float64 // Relevance: one per row of the item
	lse    []float32 // Relevance: one per current head
	// lowered is lse without what a mean of K adds to scores.
	lowered []float32

	combining combineScratch
	weighing  weighScratch
}

// part is the attention of a unit's heads over one piece of the list.
type part struct {
	top  []float32   // [heads]: largest score
	sum  []float64   // [heads]: sum of exp(score - top)
	used [sides]bool // whether acc has values for the side
	// acc is [heads, padV] for each form of unpacked V: sum of exp(score - top) * v, in the layout
	// of such tiles.
	acc   [sides][]float64
	tally [tallies]tally // [entries of the piece, heads]
}

// Forms of unpacked V: floats of exact formats, floats of rotated formats, bytes of rotated
// formats.
const (
	exactSide = iota
	rotatedSide
	bytesSide
	sides
)

// sums are running float32 sums of one side.
type sums struct {
	acc  []float32 // [heads, padV]
	open bool      // values were added since the last fold
}

// foldTiles is the largest number of tiles to add in float32. It bounds the error of the sums for
// any context length, and folding costs little. Every tile of a piece counts, seen or not, so that
// a query's sums do not depend on what other queries see.
const foldTiles = 4

// cancelBlocks is the number of blocks between two looks at the context.
const cancelBlocks = 16

// Attend computes attention over the blocks of a view; see backend.Backend. The outputs must not
// overlap q.Q.
func (b *Backend) Attend(ctx context.Context, q *backend.Queries, v backend.View,
	to backend.Attention) error {
	turn, err := b.open(ctx, backend.OpAttend)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := b.calls.Get().(*call)
	defer c.done()
	w, err := args.ViewOf[described](b, v)
	if err == nil {
		err = c.keep(args.Attend(c.seeds[:0], q, w, &to))
	}
	if err != nil {
		return fmt.Errorf("kvist/cpu: attend: %w", err)
	}
	c.begin(ctx, q, w)
	c.to = to
	c.cutUnits(c.mostQueries(), true)
	if err := c.prepare(backend.OpAttend); err != nil {
		return err
	}
	for units := c.units; len(units) > 0; {
		n, doubles, floats := c.fitting(units)
		c.wave = units[:n]
		if err := c.attendWave(doubles, floats); err != nil {
			return err
		}
		units = units[n:]
	}
	return nil
}

// keep keeps the seeds that a check found.
func (c *call) keep(sd []seeds, err error) error {
	if err == nil {
		c.seeds = sd
	}
	return err
}

// attendWave processes the pieces of some units, then combines them in order.
func (c *call) attendWave(doubles, floats int) error {
	last := &c.wave[len(c.wave)-1]
	n := last.at + last.pieces()
	c.owner, c.parts = grow(c.owner, n), grow(c.parts, n)
	c.doubles, c.floats = grow(c.doubles, doubles), grow(c.floats, floats)
	d, f := c.doubles, c.floats
	for i := range c.wave {
		u := &c.wave[i]
		for j := range u.pieces() {
			c.owner[u.at+j] = int32(i)
			nd, nf := c.partFloats(u, j), c.topFloats(u, j)
			c.parts[u.at+j] = newPart(len(u.qs)*c.Group, f[:nf], d[:nd], c.padV)
			c.parts[u.at+j].split(c.to.Mass != nil, u.means)
			d, f = d[nd:], f[nf:]
		}
	}
	if err := c.b.workers.run(c.ctx, backend.OpAttend, n, c.doAttend); err != nil {
		return err
	}
	return c.b.workers.run(c.ctx, backend.OpAttend, len(c.wave), c.doCombine)
}

// newPart makes an empty part from memory of partFloats and topFloats elements.
func newPart(heads int, tops []float32, sums []float64, padV int) part {
	p := part{top: tops[:heads], sum: sums[:heads]}
	p.tally[0].tops = tops[heads:]
	sums = sums[heads:]
	for i := range p.acc {
		p.acc[i], sums = sums[:heads*padV], sums[heads*padV:]
	}
	p.tally[0].sums = sums
	clear(p.sum)
	clear(sums)
	for i := range p.top {
		p.top[i] = float32(negInf)
	}
	return p
}

// use returns the sums of a side, zero at first.
func (p *part) use(side int) []float64 {
	if !p.used[side] {
		p.used[side] = true
		clear(p.acc[side])
	}
	return p.acc[side]
}

// attendOne processes part i of the wave.
func (c *call) attendOne(i int) error {
	u := &c.wave[c.owner[i]]
	s := c.b.scratch.Get().(*scratch)
	err := s.attend(c, u, i-u.at, &c.parts[i])
	c.b.release(s)
	return err
}

// combineOne combines the parts of unit i of the wave.
func (c *call) combineOne(i int) error {
	u := &c.wave[i]
	s := c.b.scratch.Get().(*scratch)
	err := s.combine(c, u, c.parts[u.at:u.at+u.pieces()])
	c.b.release(s)
	return err
}

// release returns scratch without references to the call's memory.
func (b *Backend) release(s *scratch) {
	s.p, s.unit, s.qs, s.vecs, s.blk, s.heads.Tops = nil, nil, nil, nil, blockView{}, nil
	s.angles, s.metric, s.tally, s.rest = nil, nil, [tallies]tally{}, nil
	s.runner.End()
	b.scratch.Put(s)
}

// attend processes one piece of a unit's list.
func (s *scratch) attend(c *call, u *unit, piece int, dst *part) error {
	s.begin(c, u, dst)
	from, to := c.piece(u, piece)
	for at, look := from, from.entry; at.before(to); {
		if at.entry >= look {
			if err := cancelled(c.ctx, backend.OpAttend); err != nil {
				return err
			}
			look = at.entry + cancelBlocks
		}
		next, err := at, error(nil)
		if s.runner.able && c.formOf(u.list[at.entry]).Own.tiles.Rows() > 0 {
			next, err = s.run(c, u, dst, from, at, to)
		}
		if err == nil && next == at {
			next, err = s.attendBlock(c, u, dst, from, at, to)
		}
		if err != nil {
			return fmt.Errorf("kvist/cpu: attend: block %d: %w", u.list[at.entry], err)
		}
		at = next
	}
	for k := range s.tally {
		s.settle(k, dst.top)
	}
	s.lift(dst.top)
	s.fold(dst)
	return nil
}

// attendBlock processes the rows of a block from at on, up to the end of a piece, and returns the position of
// the next block.
func (s *scratch) attendBlock(c *call, u *unit, dst *part, from, at, to cut) (cut, error) {
	next, end := cut{at.entry + 1, 0}, int(c.formOf(u.list[at.entry]).Key.Rows)
	if at.entry == to.entry {
		end = to.row
	}
	if at.row >= end {
		s.keepEntry(c, u, dst, from, at.entry)
		return next, nil
	}
	if err := s.openBlock(c, u, dst, from, at.entry); err != nil {
		return at, err
	}
	for r := at.row; r < end; r += tileRows {
		s.prefetchAfter(c, u, at.entry, r)
		if s.scorer.tile(r, min(tileRows, end-r)) {
			s.addTile(dst)
		}
		s.countTile(dst)
	}
	return next, nil
}

// openBlock switches to the block of an entry, in a piece that begins at from.
func (s *scratch) openBlock(c *call, u *unit, dst *part, from cut, e int) error {
	if u.tallies > 0 {
		s.keepEntry(c, u, dst, from, e)
	}
	blk := c.view.At(int(u.list[e]))
	s.leave(blk, dst.top)
	s.rest = u.list[e+1:]
	if err := s.block(blk, true); err != nil {
		return err
	}
	s.lower(dst.top)
	return nil
}

// keepEntry begins the tallies that an entry has of its own.
func (s *scratch) keepEntry(c *call, u *unit, dst *part, from cut, e int) {
	if c.to.Mass != nil {
		s.keep(massTally, dst, e-from.entry)
	}
	if g := c.view.At(int(u.list[e])).Group; u.means && g != s.group {
		s.group = g
		s.keep(meanTally, dst, e-from.entry)
	}
}

// countTile folds sums after some tiles. Every tile of a piece counts, seen or not.
func (s *scratch) countTile(dst *part) {
	if s.tiles++; s.tiles%foldTiles == 0 {
		s.fold(dst)
	}
}

// begin starts a piece of a unit.
func (s *scratch) begin(c *call, u *unit, dst *part) {
	p := &c.prepared
	s.reset(p, c.view, u, u.qs)
	s.canLookUp = u.long && p.Group <= tableHeads
	heads := len(u.qs) * p.Group
	s.vt, s.before = grow(s.vt, tileRows*p.padV), grow(s.before, heads)
	for i := range s.side {
		s.side[i].acc = grow(s.side[i].acc, heads*p.padV)
		s.side[i].open = false
		clear(s.side[i].acc)
	}
	if p.kern.Bytes(quant.LM1, p.HeadDimV) {
		s.vb = grow(s.vb, tileRows*p.HeadDimV)
		s.cuts.Digits = grow(s.cuts.Digits, heads*attend.DigitBytes)
		s.cuts.Units = grow(s.cuts.Units, heads)
	}
	s.heads.Tops, s.tally, s.low = dst.top, [tallies]tally{}, false
	s.tiles, s.group = 0, 0
	s.beginRuns(heads)
}

// addTile folds the current tile into a part: one step of the online softmax.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018, arXiv
// 1805.02867); FlashAttention (2022, arXiv 2205.14135).
func (s *scratch) addTile(dst *part) {
	b, p := &s.blk, s.p
	own := &b.form.Own.v
	p.kern.Scales(&s.vscale, b.form.Key.V.Scale, b.v[own.scales:], s.r0, s.n, own.unit)
	s.tileV = tileV{}
	bytes := own.cut
	for i, lo, hi := s.nextRun(0); lo < hi; i, lo, hi = s.nextRun(i) {
		copy(s.before[lo:hi], dst.top[lo:hi])
		if bytes {
			s.tileV.cut = p.kern.SoftmaxCut(&s.cuts, &s.heads, lo, hi, &s.terms, &s.vscale)
		} else {
			p.kern.Softmax(&s.heads, lo, hi, &s.terms, &s.vscale)
		}
		all := uint32(1<<uint(s.n) - 1)
		live, any := all, uint32(0)
		for h := lo; h < hi; h++ {
			if dst.top[h] != s.before[h] {
				s.raise(dst, h)
			}
			live &= s.heads.Masks[h]
			any |= s.heads.Masks[h]
		}
		s.addSums(dst, lo, s.heads.Sums[lo:hi])
		if any != 0 {
			s.addRun(lo, hi, live == all)
		}
	}
}

// addSums adds a tile's sums of weights of the heads from lo on.
func (s *scratch) addSums(dst *part, lo int, sums []float32) {
	addTo(dst.sum[lo:], sums)
	for k := range s.tally {
		if t := s.tally[k].sums; t != nil {
			addTo(t[lo:], sums)
		}
	}
}

func addTo(sums []float64, x []float32) {
	sums = sums[:len(x)]
	for i, v := range x {
		sums[i] += float64(v)
	}
}

// tileV is the state of V's rows in the current tile.
type tileV struct {
	cut             bool // weights are in digits: V's rows are unpacked to bytes
	bytes, unpacked bool // the tile of bytes, of floats, is filled
}

// addRun adds V's rows of the current tile to the sums of heads [lo, hi). whole reports whether
// every one of these heads sees every row.
func (s *scratch) addRun(lo, hi int, whole bool) {
	b, p, t := &s.blk, s.p, &s.tileV
	c, rows := b.form.Key.V, int(b.form.Key.Rows)
	if t.cut && p.kern.Direct(c.Format, p.HeadDimV, s.n, len(s.heads.Masks)) {
		p.kern.AddPlanes(s.sideFor(bytesSide)[lo*p.padV:], &s.cuts, hi-lo, c.Format, b.v, rows, s.r0)
		return
	}
	if t.cut {
		if !t.bytes {
			p.kern.UnpackBytes(s.vb, true, c, b.v, rows, p.HeadDimV, s.r0, s.n, &s.unpackT)
			s.prefetchV()
			t.bytes = true
		}
		acc := s.sideFor(bytesSide)
		p.kern.AddBytes(acc[lo*p.padV:], &s.cuts, hi-lo, s.vb, p.HeadDimV, s.n)
		return
	}
	if !t.unpacked {
		p.kern.Unpack(s.vt, p.kern.LayoutV(c.Format), c, b.v, rows, p.HeadDimV, s.r0, s.n, &s.unpackT)
		s.prefetchV()
		t.unpacked = true
	}
	acc := s.sideFor(index(c.Format.Rotated()))
	if whole || c.Format.Rotated() || finiteAll(s.vt[:s.n*p.padV]) {
		p.kern.Accumulate(acc[lo*p.padV:], s.heads.Weights[lo*tileRows:], hi-lo, s.vt, p.padV, s.n)
	} else {
		s.accumulateLive(lo, hi, acc)
	}
}

// prefetchV prefetches V's rows of the next tile.
func (s *scratch) prefetchV() {
	next := s.r0 + s.n
	if f := s.blk.form; !f.Own.v.planes {
		s.p.kern.Prefetch(f.Key.V, s.blk.v, s.p.HeadDimV, next, min(tileRows, int(f.Key.Rows)-next))
	}
}

// sideFor returns the running sums to which the current tile is added.
func (s *scratch) sideFor(which int) []float32 {
	s.side[which].open = true
	return s.side[which].acc
}

// accumulateLive adds a tile that holds infinities or NaNs to the sums of heads [lo, hi). It leaves
// out the rows that a head does not see.
func (s *scratch) accumulateLive(lo, hi int, acc []float32) {
	p := s.p
	for h := lo; h < hi; h++ {
		to, w := acc[h*p.padV:(h+1)*p.padV], s.heads.Weights[h*tileRows:]
		if s.heads.Masks[h] == uint32(1<<uint(s.n)-1) {
			p.kern.Accumulate(to, w, 1, s.vt, p.padV, s.n)
		} else {
			attend.AccumulateLive(to, w, 1, s.vt, p.padV, s.n)
		}
	}
}

// finiteAll reports whether no value is an infinity or a NaN.
func finiteAll(x []float32) bool {
	var bad uint32
	for _, v := range x {
		bad |= (math.Float32bits(v)&0x7f800000 + 0x00800000) & 0x80000000
	}
	return bad == 0
}

// fold adds the float32 sums to those of the part.
func (s *scratch) fold(dst *part) {
	for i := range s.side {
		if side := &s.side[i]; side.open {
			s.p.kern.Fold(dst.use(i), side.acc)
			side.open = false
		}
	}
}

// raise updates the sums after a head's largest score rose from before[head]: earlier terms lose
// weight.
func (s *scratch) raise(dst *part, head int) {
	if dst.sum[head] == 0 {
		return
	}
	f := math.Exp(float64(s.before[head]) - float64(dst.top[head]))
	dst.sum[head] *= f
	for k := range s.tally {
		if t := s.tally[k].sums; t != nil {
			t[head] *= f
		}
	}
	at, end := head*s.p.padV, (head+1)*s.p.padV
	for i := range dst.acc {
		if side := &s.side[i]; side.open {
			s.p.kern.Fold(dst.use(i)[at:end], side.acc[at:end])
		} else if !dst.used[i] {
			continue
		}
		acc := dst.acc[i][at:end]
		for d := range acc {
			acc[d] *= f
		}
	}
}
