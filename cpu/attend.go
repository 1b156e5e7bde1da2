// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// How a batch is cut into pieces. The numbers decide the order of sums, so they depend on nothing
// but a query's own list.
const (
	// unitHeads is how many query heads meet an unpacked tile, when neighbouring queries have the
	// same list: unpacking then costs little beside the products, and the heads' accumulators
	// stay in the second-level cache.
	unitHeads = 32
	// chunkRows is the least number of rows of a piece, maxChunks the most pieces of a list:
	// enough for many workers, and a bound on the scratch.
	chunkRows = 1024
	maxChunks = 64
	// waveFloats bounds the partial results that are held at a time, in float64: 16 MiB.
	waveFloats = 2 << 20
)

// scratch is what one worker needs.
type scratch struct {
	scorer
	vt     []float32 // [tileRows, head_dim_v]
	sum    []float32 // [head_dim_v], over one tile
	scored [tileRows]float64
	active [tileRows]int32   // rows of the tile with p > 0
	weight [tileRows]float32 // their p
	acc    []float64         // Relevance: per row of its item
}

// unit is a run of queries with the same list.
type unit struct {
	qs   []int32
	list []int32
	cuts []cut // starts of the pieces, and the end of the list
	at   int   // of its parts among those of the wave
}

// cut is a place in a list of blocks: a row of the list's entry.
type cut struct{ entry, row int }

// part is the attention of a unit's heads over one piece of the list.
type part struct {
	top, sum []float64 // [heads]: largest score, sum of exp(score - top)
	exact    []float64 // [heads, head_dim_v]: sum of exp(score - top) * v, original basis
	rotated  []float64 // the same, for V sides that are rotated
}

// Attend computes attention over packed blocks, see backend.Backend. out and lse must not
// overlap q.Q.
func (b *Backend) Attend(ctx context.Context, q *backend.Queries, blocks []backend.Block,
	out, lse []float32) error {
	if err := b.open(ctx, backend.OpAttend); err != nil {
		return err
	}
	sd, err := b.check().Attend(q, blocks, out, lse, nil)
	if err != nil {
		return fmt.Errorf("kvist/cpu: attend: %w", err)
	}
	p, err := b.prepare(ctx, backend.OpAttend, q, sd)
	if err != nil {
		return err
	}
	units := cutUnits(q, blocks)
	for len(units) > 0 {
		n := wave(units, q)
		if err := b.attendWave(ctx, p, units[:n], blocks, out, lse); err != nil {
			return err
		}
		units = units[n:]
	}
	return nil
}

// cutUnits groups neighbouring queries with the same list, and cuts the lists.
func cutUnits(q *backend.Queries, blocks []backend.Block) []unit {
	most := max(1, unitHeads/q.Group)
	all := make([]int32, q.Len())
	var units []unit
	for i := range all {
		all[i] = int32(i)
		list := q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]]
		if last := len(units) - 1; last >= 0 && len(units[last].qs) < most &&
			slices.Equal(units[last].list, list) {
			u := &units[last]
			u.qs = all[i-len(u.qs) : i+1]
			continue
		}
		units = append(units, unit{qs: all[i : i+1], list: list, cuts: cutList(list, blocks)})
	}
	return units
}

// cutList cuts a list into pieces of at least chunkRows rows, at multiples of tileRows of a block.
func cutList(list []int32, blocks []backend.Block) []cut {
	rows := 0
	for _, i := range list {
		rows += int(blocks[i].Rows)
	}
	if rows == 0 {
		return nil
	}
	size := max(chunkRows, (rows+maxChunks-1)/maxChunks)
	cuts := []cut{{}}
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
	return cuts
}

// pieces returns the number of pieces of a unit's list.
func (u *unit) pieces() int { return max(0, len(u.cuts)-1) }

func partFloats(heads, dimV int) int { return heads * (2 + 2*dimV) }

// wave returns how many units are worked on together: all that fit waveFloats, at least one. It
// sets the place of their parts.
func wave(units []unit, q *backend.Queries) int {
	floats, parts := 0, 0
	for n := range units {
		u := &units[n]
		floats += u.pieces() * partFloats(len(u.qs)*q.Group, q.HeadDimV)
		if n > 0 && floats > waveFloats {
			return n
		}
		u.at = parts
		parts += u.pieces()
	}
	return len(units)
}

// attendWave works on the pieces of some units, then combines them in their order.
func (b *Backend) attendWave(ctx context.Context, p *prepared, units []unit,
	blocks []backend.Block, out, lse []float32) error {
	last := &units[len(units)-1]
	owner := make([]int32, last.at+last.pieces())
	for i := range units {
		for j := range units[i].pieces() {
			owner[units[i].at+j] = int32(i)
		}
	}
	parts := make([]part, len(owner))
	err := b.workers.run(ctx, backend.OpAttend, len(parts), func(i int) error {
		u := &units[owner[i]]
		parts[i] = newPart(len(u.qs)*p.Group, p.HeadDimV)
		s := b.scratch.Get().(*scratch)
		defer b.release(s)
		return s.attend(ctx, b, p, u, i-u.at, blocks, &parts[i])
	})
	if err != nil {
		return err
	}
	return b.workers.run(ctx, backend.OpAttend, len(units), func(i int) error {
		u := &units[i]
		combine(p, u, parts[u.at:u.at+u.pieces()], out, lse)
		return nil
	})
}

func newPart(heads, dimV int) part {
	f := make([]float64, partFloats(heads, dimV))
	p := part{top: f[:heads], sum: f[heads : 2*heads]}
	f = f[2*heads:]
	p.exact, p.rotated = f[:heads*dimV], f[heads*dimV:]
	for i := range p.top {
		p.top[i] = negInf
	}
	return p
}

// release puts scratch back, without what belongs to the call.
func (b *Backend) release(s *scratch) {
	s.p, s.qs, s.vecs, s.blk = nil, nil, nil, blockView{}
	b.scratch.Put(s)
}

// attend works on one piece of a unit's list.
func (s *scratch) attend(ctx context.Context, b *Backend, p *prepared, u *unit, piece int,
	blocks []backend.Block, dst *part) error {
	s.reset(p, u.qs)
	s.vt, s.sum = grow(s.vt, tileRows*p.HeadDimV), grow(s.sum, p.HeadDimV)
	from, to := u.cuts[piece], u.cuts[piece+1]
	for e := from.entry; e < len(u.list) && (e < to.entry || (e == to.entry && to.row > 0)); e++ {
		if err := cancelled(ctx, backend.OpAttend); err != nil {
			return err
		}
		blk, err := b.view(&blocks[u.list[e]], backend.OpAttend, p.Queries)
		if err != nil {
			return fmt.Errorf("kvist/cpu: attend: block %d: %w", u.list[e], err)
		}
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
		s.block(blk)
		for r := first; r < end; r += tileRows {
			if s.scorer.tile(r, min(tileRows, end-r)) {
				s.addTile(r, dst)
			}
		}
	}
	return nil
}

// addTile folds the tile at work into a part: one step of the online softmax.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018, arXiv
// 1805.02867); FlashAttention (2022, arXiv 2205.14135).
func (s *scratch) addTile(r0 int, dst *part) {
	b, dimV := &s.blk, s.p.HeadDimV
	acc := dst.exact
	if b.V.Coding.Format.Rotated() {
		acc = dst.rotated
	}
	unpacked := false
	for i := range s.qs {
		for h := range s.p.Group {
			top, ok := s.scores(&s.scored, i, h)
			if !ok {
				continue
			}
			head := i*s.p.Group + h
			if top > dst.top[head] {
				raise(dst, head, dimV, top)
			}
			n := s.weigh(dst, head)
			if n == 0 {
				continue
			}
			if !unpacked {
				unpackRows(s.vt, b.V.Coding, b.v, int(b.Rows), dimV, r0, s.n)
				unpacked = true
			}
			sumRows(s.sum, s.vt, s.active[:n], s.weight[:n])
			for d, x := range s.sum {
				acc[head*dimV+d] += float64(x)
			}
		}
	}
}

// raise makes top the reference of a head's sums.
func raise(dst *part, head, dimV int, top float64) {
	if dst.sum[head] != 0 {
		f := math.Exp(dst.top[head] - top)
		dst.sum[head] *= f
		for _, acc := range [][]float64{dst.exact, dst.rotated} {
			acc = acc[head*dimV : (head+1)*dimV]
			for d := range acc {
				acc[d] *= f
			}
		}
	}
	dst.top[head] = top
}

// weigh turns the scores of the tile into weights, adds them up, and lists the rows that have
// one. A row without weight is left out, so that whatever it holds cannot reach the result.
func (s *scratch) weigh(dst *part, head int) int {
	n := 0
	sum, top := 0.0, dst.top[head]
	for r, x := range s.scored[:s.n] {
		if x == negInf {
			continue
		}
		p := math.Exp(x - top)
		w := float32(p)
		if w == 0 {
			continue
		}
		sum += p
		s.active[n], s.weight[n] = int32(r), w
		n++
	}
	dst.sum[head] += sum
	return n
}

// sumRows writes sum_i weights[i] * row rows[i] of v, in float32, four rows at a time.
func sumRows(dst, v []float32, rows []int32, weights []float32) {
	clear(dst)
	dim := len(dst)
	weights = weights[:len(rows)]
	i := 0
	for ; i+4 <= len(rows); i += 4 {
		v0 := v[int(rows[i])*dim:][:dim]
		v1 := v[int(rows[i+1])*dim:][:dim]
		v2 := v[int(rows[i+2])*dim:][:dim]
		v3 := v[int(rows[i+3])*dim:][:dim]
		w0, w1, w2, w3 := weights[i], weights[i+1], weights[i+2], weights[i+3]
		for d := range dst {
			dst[d] += (w0*v0[d] + w1*v1[d]) + (w2*v2[d] + w3*v3[d])
		}
	}
	for ; i < len(rows); i++ {
		w := weights[i]
		for d, x := range v[int(rows[i])*dim:][:dim] {
			dst[d] += w * x
		}
	}
}

// combine folds the parts of a unit together in the order of the list, and writes its results.
func combine(p *prepared, u *unit, parts []part, out, lse []float32) {
	dimV := p.HeadDimV
	exact, rotated := make([]float64, dimV), make([]float64, dimV)
	back := make([]float32, dimV)
	for i, q := range u.qs {
		rot := p.rotV(int(q))
		for h := range p.Group {
			head := i*p.Group + h
			clear(exact)
			clear(rotated)
			top, sum := negInf, 0.0
			for c := range parts {
				if parts[c].sum[head] != 0 { // NaN is not 0
					top = max(top, parts[c].top[head])
				}
			}
			for c := range parts {
				if parts[c].sum[head] == 0 {
					continue
				}
				f := math.Exp(parts[c].top[head] - top)
				sum += f * parts[c].sum[head]
				for d := range dimV {
					exact[d] += f * parts[c].exact[head*dimV+d]
					rotated[d] += f * parts[c].rotated[head*dimV+d]
				}
			}
			global := int(q)*p.Group + h
			finish(out[global*dimV:(global+1)*dimV], exact, rotated, back, rot, sum)
			if lse != nil {
				lse[global] = float32(top + math.Log(sum))
			}
		}
	}
}

// finish writes (exact + inverse rotation of rotated) / sum, and zeros for a query that saw no
// row. Sums in the rotated basis go back once, here.
func finish(out []float32, exact, rotated []float64, back []float32, rot *quant.Rotation,
	sum float64) {
	if sum == 0 {
		clear(out)
		return
	}
	for d := range out {
		back[d] = float32(rotated[d] / sum)
	}
	if rot != nil {
		rot.Inverse(back)
	}
	for d := range out {
		out[d] = float32(exact[d]/sum + float64(back[d]))
	}
}
