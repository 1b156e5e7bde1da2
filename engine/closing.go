// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"unsafe"

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
	queries                int // heads that w.weight is the sum over
	rel                    backend.RelevanceOut
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

func (c *Cache) takeClosing() (*closing, error) {
	if n := len(c.closings); n > 0 {
		w := c.closings[n-1]
		c.closings = c.closings[:n-1]
		return w, nil
	}
	return c.newClosing()
}

// closingBytes returns the bytes of newClosing.
func (c *Cache) closingBytes() int64 {
	g, e, pages := c.geo, int64(c.cfg.KeptQueries), int64(c.segPages()*c.geo.KVHeads)
	return e*int64(g.Heads)*int64(4*g.HeadDim+4) + int64(c.cfg.Segment)*int64(4*g.KVHeads+4+8) +
		e*int64(g.KVHeads)*12 + 4 + 4*e*pages + pages*int64(unsafe.Sizeof(backend.Block{})) + 4*pages + 4 +
		4*int64(c.cfg.Segment)*int64(max(g.HeadDim, g.HeadDimV)) + int64(unsafe.Sizeof(closing{}))
}

func (c *Cache) newClosing() (*closing, error) {
	if !c.led.take(forScratch, c.closingBytes()) {
		return nil, errNoRoom
	}
	g, e, n := c.geo, c.cfg.KeptQueries, c.cfg.Segment
	pages, side := c.segPages()*g.KVHeads, 2*n*max(g.HeadDim, g.HeadDimV)
	return &closing{q: make([]float32, e*g.Heads*g.HeadDim), lse: make([]float32, e*g.Heads),
		weight: make([]float32, n*g.KVHeads), smooth: make([]float32, n), pos: make([]int64, e*g.KVHeads),
		ptr: make([]int32, e*g.KVHeads+1), idx: make([]int32, e*pages), blocks: make([]backend.Block, pages),
		row: make([]int32, pages+1), order: make([]int32, n), perm: make([]int32, n), from: make([]byte, side),
		to: make([]byte, side)}, nil
}

// close sorts the rows of a layer of a segment by the weights in w.weight, head by head: the heaviest
// rows come first. Rows move between pages of the same codings only, so nothing is coded again and the
// step can be rolled back.
func (s *step) close(layer int, r *stepRow, seg *segment) error {
	c, g, w := s.c, s.c.geo, s.closing
	spots := s.spotsOf(r, seg.lo)
	for h := range g.KVHeads {
		blocks := seg.of(layer, h, g.KVHeads)
		rootMean(w.smooth, w.weight[h*c.cfg.Segment:(h+1)*c.cfg.Segment])
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
			b.mass = 0
			for _, row := range w.perm[i*pageTokens : (i+1)*pageTokens] {
				x := w.weight[h*c.cfg.Segment+int(row)]
				b.mass += float32(x*x) / float32(max(w.queries, 1))
			}
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

// rootMean averages the root of x over five tokens: what is read with a token is worth what the token
// is. x is overwritten.
func rootMean(dst, x []float32) {
	for i, v := range x {
		x[i] = 0
		if v > 0 && !math.IsInf(float64(v), 0) {
			x[i] = float32(math.Sqrt(float64(v)))
		}
	}
	for i := range dst {
		lo, hi := max(0, i-2), min(len(x), i+3)
		var sum float64
		for _, v := range x[lo:hi] {
			sum += float64(v)
		}
		dst[i] = float32(sum / float64(hi-lo))
	}
}

// weigh sets the weights of a segment's rows in a layer to the root mean square attention of the kept
// queries before position p. Where there are none the weights are zero, which keeps rows in order.
func (s *step) weigh(layer int, r *stepRow, seg *segment, p int64) error {
	c, w := s.c, s.closing
	n := c.keptBefore(w, layer, p, &r.kept, &r.seq.kept)
	return c.relevance(s.ctx, w, layer, seg, n)
}

// relevance sets w.weight [kv_heads, rows of the segment] to the sum of p^2 over the n kept queries in
// w.q. w.row tells where the rows of each block begin.
func (c *Cache) relevance(ctx context.Context, w *closing, layer int, seg *segment, n int) error {
	g := c.geo
	group := g.GQARatio()
	clear(w.weight)
	w.blocks, w.row = w.blocks[:0], append(w.row[:0], 0)
	for h := range g.KVHeads {
		blocks := seg.of(layer, h, g.KVHeads)
		for i := range blocks {
			if v, ok := c.view(seg, &blocks[i], layer, h, i, seg.hi()); ok {
				w.blocks = append(w.blocks, v)
				w.row = append(w.row, w.row[len(w.row)-1]+v.Rows)
			}
		}
	}
	w.ptr, w.idx = append(w.ptr[:0], 0), w.idx[:0]
	for i := range n * g.KVHeads {
		for b := range w.blocks {
			if int(w.blocks[b].KVHead) == i%g.KVHeads {
				w.idx = append(w.idx, int32(b))
			}
		}
		w.ptr = append(w.ptr, int32(len(w.idx)))
	}
	if len(w.idx) == 0 {
		return nil
	}
	w.queries = n * group
	q := backend.Queries{Q: w.q[:n*g.Heads*g.HeadDim], Group: group, HeadDim: g.HeadDim, HeadDimV: g.HeadDimV,
		Scale: c.cfg.Scale, Softcap: c.cfg.Softcap, Pos: w.pos[:n*g.KVHeads], Window: c.cfg.layerWindow(layer),
		BlockPtr: w.ptr, BlockIdx: w.idx}
	w.rel = backend.RelevanceOut{Power: 2, RowPtr: w.row, Sum: w.weight[:w.row[len(w.row)-1]]}
	return backend.RelevanceBlocks(ctx, c.be, &q, nil, w.lse[:n*g.Heads], w.blocks, &w.rel)
}

// keptBefore fills w.q, w.lse and w.pos with the kept queries before position p, and returns how many
// there are.
func (c *Cache) keptBefore(w *closing, layer int, p int64, from ...*kept) (n int) {
	lo, hi := c.entries(p)
	for j := lo; j < hi; j++ {
		for _, k := range from {
			if i, ok := k.holds(layer, j); ok {
				c.unpackEntry(k, i, w.q, w.lse, w.pos, n, (j+1)*int64(c.stride)-1)
				n++
				break
			}
		}
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
	c, w := s.c, s.closing
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

// massDecay is what is left of the mass of a block when it is measured again.
const massDecay = 0.75

// reprice measures again how much the kept queries read every closed block, in sequences of which
// segments have closed since.
func (c *Cache) reprice() error {
	var w *closing
	for _, q := range c.seqs {
		if !q.stale {
			continue
		}
		if w == nil {
			var err error
			if w, err = c.takeClosing(); err != nil {
				return nil // without memory to measure in, blocks keep the mass they have
			}
		}
		q.stale = false
		for l := range c.geo.Layers {
			n := c.keptBefore(w, l, q.n, &q.kept)
			for _, s := range q.segs {
				if n == 0 || s.sinks || !s.closed {
					continue
				}
				if err := c.relevance(context.Background(), w, l, s, n); err != nil {
					return err
				}
				c.addMass(w, l, s)
			}
		}
	}
	if w != nil {
		c.closings = append(c.closings, w)
	}
	return nil
}

// addMass folds the sums of w.weight into the masses of a segment's blocks in a layer. A shared segment is
// worth what it is worth to the sequence that reads it most.
func (c *Cache) addMass(w *closing, layer int, s *segment) {
	i := 0
	for h := range c.geo.KVHeads {
		blocks := s.of(layer, h, c.geo.KVHeads)
		for p := range blocks {
			if blocks[p].at[sideK] == 0 {
				continue
			}
			var sum float64
			for _, v := range w.weight[w.row[i]:w.row[i+1]] {
				if v > 0 && !math.IsInf(float64(v), 0) {
					sum += float64(v)
				}
			}
			m := float32(sum / float64(w.queries))
			mixed := float32(massDecay*blocks[p].mass) + float32((1-massDecay)*m)
			if s.refs > 1 {
				mixed = max(mixed, blocks[p].mass)
			}
			blocks[p].mass = mixed
			i++
		}
	}
}
