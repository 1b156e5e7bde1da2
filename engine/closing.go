// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// closing is the scratch memory of segments that close.
type closing struct {
	q, lse, weight, smooth []float32
	pos                    []int64
	ptr, idx               []int32
	blocks                 []backend.Block
	row                    []int32
	order, perm            []int32
	from, to               []byte
	rel                    backend.RelevanceOut
}

// closingNeed are the lengths of its lists.
type closingNeed struct{ entries, queries, heads, rows, pages, bytes int }

func (s *step) closingNeed() (n closingNeed) {
	if !s.need.closes {
		return n
	}
	c := s.c
	g, e := c.geo, c.cfg.KeptQueries
	pages := c.segPages()
	return closingNeed{entries: e, queries: e * g.KVHeads, heads: e * g.Heads, rows: c.cfg.Segment * g.KVHeads,
		pages: pages * g.KVHeads, bytes: 2 * c.cfg.Segment * max(g.HeadDim, g.HeadDimV)}
}

func (w *closing) growth(s *step) int64 {
	n, g := s.closingNeed(), s.c.geo
	one := n.rows / g.KVHeads
	return more(w.q, n.heads*g.HeadDim) + more(w.lse, n.heads) + more(w.weight, n.rows) + more(w.smooth, one) +
		more(w.pos, n.queries) + more(w.ptr, n.queries+1) + more(w.idx, n.entries*n.pages) +
		more(w.blocks, n.pages) + more(w.row, n.pages+1) + more(w.order, one) + more(w.perm, one) +
		more(w.from, n.bytes) + more(w.to, n.bytes)
}

func (w *closing) grow(s *step) error {
	n, g, led := s.closingNeed(), s.c.geo, &s.c.led
	if n.rows == 0 {
		return nil
	}
	one := n.rows / g.KVHeads
	var e [13]error
	w.q, e[0] = fit(led, w.q, n.heads*g.HeadDim)
	w.lse, e[1] = fit(led, w.lse, n.heads)
	w.weight, e[2] = fit(led, w.weight, n.rows)
	w.smooth, e[3] = fit(led, w.smooth, one)
	w.pos, e[4] = fit(led, w.pos, n.queries)
	w.ptr, e[5] = fit(led, w.ptr, n.queries+1)
	w.idx, e[6] = fit(led, w.idx, n.entries*n.pages)
	w.blocks, e[7] = fit(led, w.blocks, n.pages)
	w.row, e[8] = fit(led, w.row, n.pages+1)
	w.order, e[9] = fit(led, w.order, one)
	w.perm, e[10] = fit(led, w.perm, one)
	w.from, e[11] = fit(led, w.from, n.bytes)
	w.to, e[12] = fit(led, w.to, n.bytes)
	for _, err := range e {
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *closing) drop(led *ledger) {
	w.q, w.lse = dropped(led, forScratch, w.q), dropped(led, forScratch, w.lse)
	w.weight, w.smooth = dropped(led, forScratch, w.weight), dropped(led, forScratch, w.smooth)
	w.pos, w.ptr = dropped(led, forScratch, w.pos), dropped(led, forScratch, w.ptr)
	w.idx, w.blocks = dropped(led, forScratch, w.idx), dropped(led, forScratch, w.blocks)
	w.row, w.order = dropped(led, forScratch, w.row), dropped(led, forScratch, w.order)
	w.perm = dropped(led, forScratch, w.perm)
	w.from, w.to = dropped(led, forScratch, w.from), dropped(led, forScratch, w.to)
}

// close sorts the rows of a layer of a segment by the weights in w.weight, head by head: the heaviest
// rows come first. Rows move between pages of the same codings only, so nothing is coded again and the
// step can be rolled back.
func (s *step) close(layer int, r *stepRow, seg *segment) error {
	c, g, w := s.c, s.c.geo, &s.closing
	spots := s.spotsOf(r, seg.lo)
	for h := range g.KVHeads {
		blocks := seg.of(layer, h, g.KVHeads)
		smooth(w.smooth, w.weight[h*c.cfg.Segment:(h+1)*c.cfg.Segment])
		for i := range w.order {
			w.order[i] = int32(i)
		}
		slices.SortFunc(w.order, func(a, b int32) int { // heaviest first, then oldest first
			switch x, y := w.smooth[a], w.smooth[b]; {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return int(a - b)
		})
		w.within(blocks)
		if err := s.permuteRows(blocks, w.perm); err != nil {
			return err
		}
		for i := range blocks {
			b := &blocks[i]
			b.rows = pageTokens
			c.arena.swap(&b.pos, &spots[(layer*g.KVHeads+h)*seg.pages+i])
			if err := c.putPositions(b, w.perm[i*pageTokens:(i+1)*pageTokens], w.to); err != nil {
				return err
			}
		}
	}
	return nil
}

// within turns the order of the rows of a segment into one that keeps rows among blocks of the same
// codings: perm[i] is the row that comes to place i.
func (w *closing) within(blocks []block) {
	for i := range blocks {
		if i > 0 && slices.ContainsFunc(blocks[:i], func(b block) bool { return b.rung == blocks[i].rung }) {
			continue
		}
		at := i
		n := 0
		for _, row := range w.order {
			if blocks[row/pageTokens].rung != blocks[i].rung {
				continue
			}
			w.perm[at*pageTokens+n] = row
			if n++; n == pageTokens {
				for n, at = 0, at+1; at < len(blocks) && blocks[at].rung != blocks[i].rung; at++ {
				}
			}
		}
	}
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

// putPositions stores which rows a block holds.
func (c *Cache) putPositions(b *block, rows []int32, tmp []byte) error {
	tmp = tmp[:2*len(rows)]
	for i, r := range rows {
		binary.LittleEndian.PutUint16(tmp[2*i:], uint16(r))
	}
	at := c.arena.at(b.pos, int64(len(tmp)))
	return at.Buf.Upload(at.Off, tmp)
}

// smooth averages over five tokens: what is read with a token is worth what the token is.
func smooth(dst, x []float32) {
	for i := range dst {
		lo, hi := max(0, i-2), min(len(x), i+3)
		var sum float64
		for _, v := range x[lo:hi] {
			sum += float64(v)
		}
		dst[i] = float32(sum / float64(hi-lo))
	}
}

// weigh sets w.weight [kv_heads, tokens of the segment] to the root mean square attention of the kept
// queries before position p. Where there are none the weights are zero, which keeps rows in order.
func (s *step) weigh(layer int, r *stepRow, seg *segment, p int64) error {
	c, g, w := s.c, s.c.geo, &s.closing
	n := s.keptBefore(layer, r, p)
	clear(w.weight)
	if n == 0 {
		return nil
	}
	group := g.GQARatio()
	w.blocks, w.row = w.blocks[:0], append(w.row[:0], 0)
	for h := range g.KVHeads {
		for i, b := range seg.of(layer, h, g.KVHeads) {
			v, _ := c.view(seg, &b, layer, h, i, seg.hi())
			w.blocks = append(w.blocks, v)
			w.row = append(w.row, w.row[len(w.row)-1]+v.Rows)
		}
	}
	w.ptr, w.idx = append(w.ptr[:0], 0), w.idx[:0]
	for i := range n * g.KVHeads {
		for b := range seg.pages {
			w.idx = append(w.idx, int32(i%g.KVHeads*seg.pages+b))
		}
		w.ptr = append(w.ptr, int32(len(w.idx)))
	}
	q := backend.Queries{Q: w.q[:n*g.Heads*g.HeadDim], Group: group, HeadDim: g.HeadDim, HeadDimV: g.HeadDimV,
		Scale: c.cfg.Scale, Softcap: c.cfg.Softcap, Pos: w.pos[:n*g.KVHeads], Window: c.cfg.layerWindow(layer),
		BlockPtr: w.ptr, BlockIdx: w.idx}
	w.rel = backend.RelevanceOut{Power: 2, RowPtr: w.row, Sum: w.weight}
	if err := c.be.Relevance(s.ctx, &q, w.lse[:n*g.Heads], w.blocks, &w.rel); err != nil {
		return err
	}
	for i, v := range w.weight {
		w.weight[i] = 0
		if v > 0 && !math.IsInf(float64(v), 0) {
			w.weight[i] = float32(math.Sqrt(float64(v)))
		}
	}
	return nil
}

// keptBefore fills w.q, w.lse and w.pos with the kept queries before position p, and returns how many
// there are.
func (s *step) keptBefore(layer int, r *stepRow, p int64) (n int) {
	c, w := s.c, &s.closing
	from, to := c.entries(p)
	for j := from; j < to; j++ {
		k := &r.kept
		i, ok := k.holds(layer, j)
		if !ok {
			k = &r.seq.kept
			if i, ok = k.holds(layer, j); !ok {
				continue
			}
		}
		c.unpackEntry(k, i, w.q, w.lse, w.pos, n, (j+1)*int64(c.stride)-1)
		n++
	}
	return n
}

// unpackEntry writes the kept query at place i of k to q, lse and pos as the n-th one.
func (c *Cache) unpackEntry(k *kept, i int, q, lse []float32, pos []int64, n int, at int64) {
	g := c.geo
	for h := range g.Heads {
		src, step := k.q[(i*g.Heads+h)*g.HeadDim:][:g.HeadDim], k.scale[i*g.Heads+h]
		dst := q[(n*g.Heads+h)*g.HeadDim:][:g.HeadDim]
		for d, v := range src {
			dst[d] = float32(v) * step
		}
	}
	copy(lse[n*g.Heads:(n+1)*g.Heads], k.lse[i*g.Heads:])
	for h := range g.KVHeads {
		pos[n*g.KVHeads+h] = at
	}
}

// permuteRows moves rows between blocks: place i gets row perm[i]. Packed rows are moved as they are.
func (s *step) permuteRows(blocks []block, perm []int32) error {
	c, w := s.c, &s.closing
	for side, dim := range c.sizes.dim {
		for i := range blocks {
			at := c.arena.at(blocks[i].at[side], c.sizes.bytes(side, blocks[i].rung[side]))
			if err := at.Buf.Download(at.Off, w.from[i*2*pageTokens*dim:][:at.Len]); err != nil {
				return err
			}
		}
		for i := range blocks {
			at := c.arena.at(blocks[i].at[side], c.sizes.bytes(side, blocks[i].rung[side]))
			for r := range pageTokens {
				from := int(perm[i*pageTokens+r])
				copyPacked(w.to[:at.Len], r, w.from[from/pageTokens*2*pageTokens*dim:][:at.Len], from%pageTokens,
					blocks[i].rung[side].coding(), dim)
			}
			blocks[i].energy[side] = energyOf(w.to[:at.Len], blocks[i].rung[side].coding(), dim)
			if err := at.Buf.Upload(at.Off, w.to[:at.Len]); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyPacked copies row j of a packed side of 32 rows to row i of another of the same coding.
func copyPacked(dst []byte, i int, src []byte, j int, cd quant.Coding, dim int) {
	if cd.Format.Exact() {
		n := 2 * dim
		copy(dst[i*n:(i+1)*n], src[j*n:])
		return
	}
	scales := cd.PackedBytes(pageTokens, dim) - cd.ScaleBytes(pageTokens)
	plane, n := scales/cd.Format.Bits(), dim/8
	for p := 0; p < scales; p += plane {
		copy(dst[p+i*n:p+(i+1)*n], src[p+j*n:])
	}
	copy(dst[scales+2*i:scales+2*i+2], src[scales+2*j:])
}

// energyOf returns the mean energy of 32 packed rows.
func energyOf(p []byte, cd quant.Coding, dim int) float32 {
	var sum float64
	if cd.Format.Exact() {
		for i := range pageTokens * dim {
			v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(p[2*i:])))
			sum += float64(v * v)
		}
	} else { // the centroids of the family are those of a row whose root mean square is the scale
		at := cd.PackedBytes(pageTokens, dim) - cd.ScaleBytes(pageTokens)
		for r := range pageTokens {
			v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(p[at+2*r:])))
			sum += float64(v*v) * float64(dim)
		}
	}
	if sum = sum / pageTokens; !(sum < math.MaxFloat32) {
		return math.MaxFloat32
	}
	return float32(sum)
}
