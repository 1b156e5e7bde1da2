// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
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
	// in a list: enough for many workers, and a bound on scratch memory.
	chunkRows = 1024
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
	cuts   attend.Weights // weights of the heads, in digits
	side   [sides]sums    // indexed by the form of unpacked V
	tileV  tileV
	acc    []float64 // Relevance: one per row of the item
	lse    []float32 // Relevance: one per current head
	sums   []float64 // combine: [2*padV + head_dim_v]
	back   []float32 // combine: [head_dim_v]

	weighing weighScratch
}

// unit is a run of queries with the same list.
type unit struct {
	qs       []int32
	list     []int32
	from, to int  // range of call.cuts: the starts of the pieces, and the end of the list
	long     bool // the list has at least tableRows rows
	at       int  // index of its first part in the wave
}

// cut is a position in a list of blocks: an entry and a row of its block.
type cut struct{ entry, row int }

// part is the attention of a unit's heads over one piece of the list.
type part struct {
	top  []float32   // [heads]: largest score
	sum  []float64   // [heads]: sum of exp(score - top)
	used [sides]bool // whether acc has values for the side; otherwise it is zero
	// acc is [heads, padV] for each form of unpacked V: sum of exp(score - top) * v, in the layout
	// of such tiles.
	acc [sides][]float64
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

// Attend computes attention over packed blocks; see backend.Backend. out and lse must not overlap
// q.Q.
func (b *Backend) Attend(ctx context.Context, q *backend.Queries, blocks []backend.Block,
	out, lse []float32) error {
	turn, err := b.open(ctx, backend.OpAttend)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := b.calls.Get().(*call)
	defer c.done()
	if err := c.checkAttend(q, blocks, out, lse); err != nil {
		return fmt.Errorf("kvist/cpu: attend: %w", err)
	}
	if err := c.prepare(ctx, b, backend.OpAttend, q, blocks); err != nil {
		return err
	}
	c.ctx, c.blocks, c.out, c.lse = ctx, blocks, out, lse
	c.cutUnits()
	for units := c.units; len(units) > 0; {
		n := c.fitting(units)
		c.wave = units[:n]
		if err := c.attendWave(); err != nil {
			return err
		}
		units = units[n:]
	}
	return nil
}

func (c *call) checkAttend(q *backend.Queries, blocks []backend.Block, out, lse []float32) error {
	sd, err := c.b.checker.Attend(c.seeds[:0], q, blocks, out, lse, nil)
	if err == nil {
		c.seeds = sd
	}
	return err
}

// cutUnits groups neighbouring queries with the same list and divides the lists.
func (c *call) cutUnits() {
	q := c.Queries
	heads := unitHeads
	if c.looksUp() {
		heads = tableHeads
	}
	most := max(1, heads/q.Group)
	c.all = grow(c.all, q.Len())
	c.units, c.cuts = c.units[:0], c.cuts[:0]
	for i := range c.all {
		c.all[i] = int32(i)
		list := q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]]
		if last := len(c.units) - 1; last >= 0 && len(c.units[last].qs) < most &&
			slices.Equal(c.units[last].list, list) {
			u := &c.units[last]
			u.qs = c.all[i-len(u.qs) : i+1]
			continue
		}
		from := len(c.cuts)
		var rows int
		c.cuts, rows = cutList(c.cuts, list, c.blocks)
		c.units = append(c.units, unit{qs: c.all[i : i+1], list: list, from: from, to: len(c.cuts),
			long: rows >= tableRows})
	}
}

// looksUp reports whether tables are used for the inner products with some K side of a long list.
func (c *call) looksUp() bool {
	if c.Group > tableHeads {
		return false
	}
	for i := range c.blocks {
		if c.kern.Tables(c.blocks[i].K.Coding.Format, c.HeadDim) {
			return true
		}
	}
	return false
}

// cutList divides a list into pieces of at least chunkRows rows, at multiples of tileRows in a
// block, and appends the cuts. It also returns the number of rows in the list.
func cutList(cuts []cut, list []int32, blocks []backend.Block) (all []cut, rows int) {
	for _, i := range list {
		rows += int(blocks[i].Rows)
	}
	if rows == 0 {
		return cuts, 0
	}
	size := max(chunkRows, (rows+maxChunks-1)/maxChunks)
	cuts = append(cuts, cut{})
	left := size
	for e, i := range list {
		n := int(blocks[i].Rows)
		at := 0
		for n-at > left {
			at += (left + tileRows - 1) / tileRows * tileRows
			left = size
			if at >= n {
				break
			}
			cuts = append(cuts, cut{e, at})
		}
		if at < n {
			left -= n - at
		} else if at > 0 {
			cuts = append(cuts, cut{e + 1, 0})
		}
	}
	if last := cuts[len(cuts)-1]; last.entry < len(list) {
		cuts = append(cuts, cut{len(list), 0})
	}
	return cuts, rows
}

// pieces returns the number of pieces in a unit's list.
func (u *unit) pieces() int { return max(0, u.to-u.from-1) }

// partFloats is the size of a part in float64.
func partFloats(heads, padV int) int { return heads * (2 + sides*padV) }

// fitting returns the number of units in the next wave: as many as fit waveFloats, at least one. It
// sets the indices of their parts.
func (c *call) fitting(units []unit) int {
	floats, parts := 0, 0
	for n := range units {
		u := &units[n]
		floats += u.pieces() * partFloats(len(u.qs)*c.Group, c.padV)
		if n > 0 && floats > waveFloats {
			return n
		}
		u.at = parts
		parts += u.pieces()
	}
	return len(units)
}

// attendWave processes the pieces of some units, then combines them in order.
func (c *call) attendWave() error {
	last := &c.wave[len(c.wave)-1]
	n := last.at + last.pieces()
	c.owner, c.parts = grow(c.owner, n), grow(c.parts, n)
	heads := 0
	for i := range c.wave {
		u := &c.wave[i]
		heads += u.pieces() * len(u.qs) * c.Group
	}
	c.doubles, c.floats = grow(c.doubles, heads*(1+sides*c.padV)), grow(c.floats, heads)
	doubles, floats := c.doubles, c.floats
	for i := range c.wave {
		u := &c.wave[i]
		for j := range u.pieces() {
			c.owner[u.at+j] = int32(i)
			h := len(u.qs) * c.Group
			size := h * (1 + sides*c.padV)
			c.parts[u.at+j] = newPart(floats[:h], doubles[:size], c.padV)
			floats, doubles = floats[h:], doubles[size:]
		}
	}
	if err := c.b.workers.run(c.ctx, backend.OpAttend, n, c.doAttend); err != nil {
		return err
	}
	return c.b.workers.run(c.ctx, backend.OpAttend, len(c.wave), c.doCombine)
}

// newPart makes an empty part from the given memory: [heads] and [heads, 1+sides*padV].
func newPart(tops []float32, sums []float64, padV int) part {
	heads := len(tops)
	p := part{top: tops, sum: sums[:heads]}
	clear(sums)
	for i := range p.acc {
		p.acc[i] = sums[heads*(1+i*padV) : heads*(1+(i+1)*padV)]
	}
	for i := range p.top {
		p.top[i] = float32(negInf)
	}
	return p
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
	s.combine(c, u, c.parts[u.at:u.at+u.pieces()])
	c.b.release(s)
	return nil
}

// release returns scratch without references to the call's memory.
func (b *Backend) release(s *scratch) {
	s.p, s.qs, s.vecs, s.blk, s.heads.Tops = nil, nil, nil, blockView{}, nil
	b.scratch.Put(s)
}

// attend processes one piece of a unit's list.
func (s *scratch) attend(c *call, u *unit, piece int, dst *part) error {
	p := &c.prepared
	s.reset(p, u.qs)
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
	s.heads.Tops = dst.top
	tiles := 0
	from, to := c.cuts[u.from+piece], c.cuts[u.from+piece+1]
	for e := from.entry; e < len(u.list) && (e < to.entry || (e == to.entry && to.row > 0)); e++ {
		if err := cancelled(c.ctx, backend.OpAttend); err != nil {
			return err
		}
		blk := &c.blocks[u.list[e]]
		first, end := 0, int(blk.Rows)
		if e == from.entry {
			first = from.row
		}
		if e == to.entry {
			end = to.row
		}
		if first >= end {
			continue
		}
		if err := s.block(blk, true); err != nil {
			return fmt.Errorf("kvist/cpu: attend: block %d: %w", u.list[e], err)
		}
		for r := first; r < end; r += tileRows {
			c.prefetchAfter(u, e, r)
			if s.scorer.tile(r, min(tileRows, end-r)) {
				s.addTile(dst)
			}
			if tiles++; tiles%foldTiles == 0 {
				s.fold(dst)
			}
		}
	}
	s.fold(dst)
	return nil
}

// prefetchAfter prefetches the sides in bit planes of the tile after row r of entry e of a unit's
// list, while the current tile is processed.
func (c *call) prefetchAfter(u *unit, e, r int) {
	blk := &c.blocks[u.list[e]]
	if r += tileRows; r >= int(blk.Rows) {
		if e++; e == len(u.list) {
			return
		}
		blk, r = &c.blocks[u.list[e]], 0
	}
	c.prefetchSide(&blk.K, int(blk.Rows), c.HeadDim, r)
	c.prefetchSide(&blk.V, int(blk.Rows), c.HeadDimV, r)
}

func (c *call) prefetchSide(side *backend.Side, rows, dim, r int) {
	f := side.Coding.Format
	var mem []byte
	if f.Rotated() && f != quant.U8 && rows > 0 && spanAgain(&mem, &side.Data) {
		c.kern.PrefetchPlanes(side.Coding, mem, rows, dim, r, min(tileRows, rows-r))
	}
}

// addTile folds the current tile into a part: one step of the online softmax.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018, arXiv
// 1805.02867); FlashAttention (2022, arXiv 2205.14135).
func (s *scratch) addTile(dst *part) {
	b, p := &s.blk, s.p
	f := b.V.Coding.Format
	p.kern.Scales(&s.vscale, b.V.Coding, b.v, int(b.Rows), s.r0, s.n, attend.Unit(f, p.HeadDimV))
	s.tileV = tileV{}
	bytes := p.bytesV(f)
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
			dst.sum[h] += float64(s.heads.Sums[h])
			live &= s.heads.Masks[h]
			any |= s.heads.Masks[h]
		}
		if any != 0 {
			s.addRun(lo, hi, live == all)
		}
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
	c, rows := b.V.Coding, int(b.Rows)
	if t.cut && p.kern.Direct(c.Format, p.HeadDimV, s.n, len(s.heads.Masks)) {
		p.kern.AddPlanes(s.sideFor(bytesSide)[lo*p.padV:], &s.cuts, hi-lo, c.Format, b.v, rows, s.r0, s.n)
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
	s.p.kern.Prefetch(s.blk.V.Coding, s.blk.v, s.p.HeadDimV, next,
		min(tileRows, int(s.blk.Rows)-next))
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
			s.p.kern.Fold(dst.acc[i], side.acc)
			side.open, dst.used[i] = false, true
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
	at, end := head*s.p.padV, (head+1)*s.p.padV
	for i := range dst.acc {
		acc := dst.acc[i][at:end]
		if side := &s.side[i]; side.open {
			s.p.kern.Fold(acc, side.acc[at:end])
			dst.used[i] = true
		} else if !dst.used[i] {
			continue
		}
		for d := range acc {
			acc[d] *= f
		}
	}
}

// combine combines the parts of a unit in the order of the list and writes the results.
func (s *scratch) combine(c *call, u *unit, parts []part) {
	p, padV := &c.prepared, c.padV
	s.sums, s.back = grow(s.sums, sides*padV+p.HeadDimV), grow(s.back, p.HeadDimV)
	var acc [sides][]float64
	for i := range acc {
		acc[i] = s.sums[i*padV : (i+1)*padV]
	}
	rotated := s.sums[sides*padV:]
	for i, q := range u.qs {
		rot := p.rotV(int(q))
		for h := range p.Group {
			head := i*p.Group + h
			clear(s.sums)
			top, sum := negInf, 0.0
			for c := range parts {
				if parts[c].sum[head] != 0 { // NaN is not 0
					top = max(top, float64(parts[c].top[head]))
				}
			}
			for c := range parts {
				if parts[c].sum[head] == 0 {
					continue
				}
				f := math.Exp(float64(parts[c].top[head]) - top)
				sum += f * parts[c].sum[head]
				for i, used := range parts[c].used {
					if !used {
						continue
					}
					part := parts[c].acc[i][head*padV:][:padV]
					for d := range acc[i] {
						acc[i][d] += f * part[d]
					}
				}
			}
			attend.Restore(rotated, acc[rotatedSide], p.kern.LayoutV(quant.LM1))
			for d := range rotated {
				rotated[d] += acc[bytesSide][d]
			}
			at := int(q)*p.Group + h
			p.finish(c.out[at*p.HeadDimV:(at+1)*p.HeadDimV], acc[exactSide], rotated, s.back, rot, sum)
			if c.lse != nil {
				c.lse[at] = float32(top + math.Log(sum))
			}
		}
	}
}

// finish writes (exact + inverse rotation of rotated) / sum, and zeros for a query that saw no row.
// It rotates the sums of the rotated basis back once.
func (p *prepared) finish(out []float32, exact, rotated []float64, back []float32,
	rot *codec.Rotation, sum float64) {
	if sum == 0 {
		clear(out)
		return
	}
	for d := range out {
		back[d] = float32(rotated[d] / sum)
	}
	if rot != nil {
		p.codec.Inverse(rot, back, 1, p.HeadDimV)
	}
	for d := range out {
		out[d] = float32(exact[d]/sum + float64(back[d]))
	}
}
