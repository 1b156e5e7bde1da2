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
	mean                   []float64
	queries                int // heads that w.weight is the sum over
	rel                    backend.RelevanceOut
	table                  table
}

func (c *memory) takeClosing() (*closing, error) {
	if n := len(c.closings); n > 0 {
		w := c.closings[n-1]
		c.closings = c.closings[:n-1]
		return w, nil
	}
	return c.newClosing()
}

// closingBytes returns the bytes of newClosing.
func (c *memory) closingBytes() int64 {
	g, e, pages := c.geo, int64(c.cfg.KeptQueries), int64(c.segPages()*c.geo.KVHeads)
	return e*int64(g.Heads)*int64(4*g.HeadDim+4) + int64(c.cfg.Segment)*int64(4*g.KVHeads+4+8) +
		e*int64(g.KVHeads)*12 + 4 + 4*e*pages + pages*(c.tables.entry+int64(unsafe.Sizeof(backend.Block{}))) + 4*pages + 4 +
		(4*int64(c.cfg.Segment)+8)*int64(max(g.HeadDim, g.HeadDimV)) + int64(unsafe.Sizeof(closing{}))
}

func (c *memory) newClosing() (*closing, error) {
	if !c.led.take(forScratch, c.closingBytes()) {
		return nil, errNoRoom
	}
	g, e, n := c.geo, c.cfg.KeptQueries, c.cfg.Segment
	pages, side := c.segPages()*g.KVHeads, 2*n*max(g.HeadDim, g.HeadDimV)
	return &closing{q: make([]float32, e*g.Heads*g.HeadDim), lse: make([]float32, e*g.Heads),
		weight: make([]float32, n*g.KVHeads), smooth: make([]float32, n), pos: make([]int64, e*g.KVHeads),
		ptr: make([]int32, e*g.KVHeads+1), idx: make([]int32, e*pages), blocks: make([]backend.Block, pages),
		row: make([]int32, pages+1), order: make([]int32, n), perm: make([]int32, n), from: make([]byte, side),
		to: make([]byte, side), mean: make([]float64, max(g.HeadDim, g.HeadDimV))}, nil
}

// rowsIn returns the rows of a page of a segment of so many.
func rowsIn(page, rows int) int { return min(pageTokens, rows-page*pageTokens) }

// sortRows brings the heaviest of the first rows of a head first, by their summed weights, and sets what
// prices them. Rows move between pages of the same codings only, so nothing is coded again. w.perm then tells
// which row is where. weight is overwritten.
func (w *closing) sortRows(c *memory, blocks []block, weight []float32) error {
	w.order = w.order[:len(weight)]
	rootMean(w.smooth[:len(weight)], weight)
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
	for i := range blocks { // what is in a block is in the order of its tokens, here and in files
		slices.Sort(w.perm[i*pageTokens:][:rowsIn(i, len(weight))])
	}
	if err := w.permuteRows(c, blocks, w.perm[:len(weight)]); err != nil {
		return err
	}
	for i := range blocks {
		b := &blocks[i]
		b.rows = uint8(rowsIn(i, len(weight)))
		b.mass = 0
		for _, row := range w.perm[i*pageTokens:][:b.rows] {
			x := weight[row]
			b.mass += float32(x*x) / float32(max(w.queries, 1))
		}
	}
	return nil
}

// within turns w.order, the rows of a segment, into an order that keeps rows among blocks of the same
// codings: perm[i] is the row that comes to place i. The last block may have fewer rows than others.
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
			if n++; n == rowsIn(at, len(w.order)) {
				for n, at = 0, at+1; at < len(blocks) && blocks[at].rung != blocks[i].rung; at++ {
				}
			}
		}
	}
}

// putPositions stores which rows a block holds.
func (c *memory) putPositions(b *block, rows []int32, tmp []byte) error {
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

// relevance sets w.weight [kv_heads, rows of the segment] to the sum of p^2 over the n kept queries in
// w.q. w.row tells where the rows of each block begin.
func (c *memory) relevance(ctx context.Context, w *closing, layer int, seg *segment, n int) error {
	g := c.geo
	group := g.GQARatio()
	clear(w.weight)
	w.blocks, w.row = w.blocks[:0], append(w.row[:0], 0)
	for h := range g.KVHeads {
		blocks := seg.of(layer, h, g.KVHeads)
		for i := range blocks {
			if v, ok := c.view(seg, &blocks[i], layer, h, i, seg.hi(), true); ok {
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
	v, err := w.table.view(c.be, g, w.blocks)
	if err == nil {
		err = c.be.Relevance(ctx, &q, w.lse[:n*g.Heads], v, &w.rel)
	}
	if e := w.table.hide(); err == nil {
		err = e
	}
	return err
}

// meanOf sets w.mean to that of the exact rows of K in w.from, and to zero for V, which is coded with its
// mean.
func (w *closing) meanOf(blocks []block, side, dim int) {
	w.mean = w.mean[:dim]
	clear(w.mean)
	n := 0
	for i := range blocks {
		if side == sideV || blocks[i].rung[side] != f16 {
			continue
		}
		rows := rowsIn(i, len(w.order))
		n += rows
		for r := range rows {
			row := w.from[2*(i*pageTokens+r)*dim:][:2*dim]
			for j := range w.mean {
				w.mean[j] += float64(quant.F16ToF32(binary.LittleEndian.Uint16(row[2*j:])))
			}
		}
	}
	for i := range w.mean {
		w.mean[i] /= float64(max(1, n))
	}
}

// copyPacked copies row j of a packed side of srcRows rows to row i of one of dstRows rows.
func copyPacked(dst []byte, dstRows, i int, src []byte, srcRows, j int, cd quant.Coding, dim int) {
	n, planes := dim/8, cd.Format.Bits()
	if !cd.Format.Nested() { // rows stand one after the other
		n, planes = dim*planes/8, 1
	}
	at, from := len(dst)-cd.ScaleBytes(dstRows), len(src)-cd.ScaleBytes(srcRows)
	for p := range planes {
		copy(dst[p*at/planes+i*n:][:n], src[p*from/planes+j*n:])
	}
	if at < len(dst) {
		copy(dst[at+2*i:at+2*i+2], src[from+2*j:])
	}
}

// energyOf returns the mean energy of packed rows, of exact ones without their mean.
func energyOf(p []byte, rows int, cd quant.Coding, dim int, mean []float64) float32 {
	var sum float64
	at := cd.PackedBytes(rows, dim) - cd.ScaleBytes(rows)
	for r := range rows {
		var row float64
		switch {
		case cd.Format.Exact():
			for i := range dim {
				v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(p[2*(r*dim+i):]))) - mean[i]
				row += float64(v * v)
			}
		case cd.Format == quant.U8:
			var squares int64
			for _, code := range p[r*dim : (r+1)*dim] {
				squares += (int64(code) - 128) * (int64(code) - 128)
			}
			v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(p[at+2*r:]))) / 64
			row = float64(squares) * float64(v*v)
		default: // the scale is about the root mean square of the row
			v := float64(quant.F16ToF32(binary.LittleEndian.Uint16(p[at+2*r:])))
			row = float64(v*v) * float64(dim)
		}
		sum += row
	}
	if sum /= float64(rows); !(sum < math.MaxFloat32) {
		return math.MaxFloat32
	}
	return float32(sum)
}

// permuteRows moves rows between blocks: place i gets row perm[i]. Packed rows are moved as they are.
func (w *closing) permuteRows(c *memory, blocks []block, perm []int32) error {
	w.order = w.order[:len(perm)]
	for side, dim := range c.sizes.dim {
		from := func(i int) []byte {
			at := c.side(&blocks[i], side, rowsIn(i, len(perm))).Data
			return w.from[i*2*pageTokens*dim:][:at.Len]
		}
		for i := range blocks {
			at := c.side(&blocks[i], side, rowsIn(i, len(perm))).Data
			if err := at.Buf.Download(at.Off, from(i)); err != nil {
				return err
			}
		}
		w.meanOf(blocks, side, dim)
		for i := range blocks {
			rows := rowsIn(i, len(perm))
			at := c.side(&blocks[i], side, rows).Data
			cd := blocks[i].rung[side].coding()
			clear(w.to[:at.Len])
			for r := range rows {
				j := int(perm[i*pageTokens+r])
				copyPacked(w.to[:at.Len], rows, r, from(j/pageTokens), rowsIn(j/pageTokens, len(perm)), j%pageTokens, cd, dim)
			}
			blocks[i].energy[side] = energyOf(w.to[:at.Len], rows, cd, dim, w.mean)
			if err := at.Buf.Upload(at.Off, w.to[:at.Len]); err != nil {
				return err
			}
		}
	}
	return nil
}

// reopen brings the rows of an unshared segment back into their order where they have been sorted.
func (w *closing) reopen(c *memory, seg *segment) error {
	g := c.geo
	for i := range g.Layers * g.KVHeads {
		blocks := seg.blocks[i*seg.pages : (i+1)*seg.pages]
		if blocks[0].pos == 0 {
			continue
		}
		for b := range blocks {
			at := c.arena.at(blocks[b].pos, 2*pageTokens)
			if err := at.Buf.Download(at.Off, w.to[:at.Len]); err != nil {
				return err
			}
			for r := range pageTokens {
				w.perm[binary.LittleEndian.Uint16(w.to[2*r:])] = int32(b*pageTokens + r)
			}
			if err := c.arena.release(&blocks[b].pos); err != nil {
				return err
			}
			blocks[b].rows = 0
			c.touch(&blocks[b])
		}
		if err := w.permuteRows(c, blocks, w.perm[:len(blocks)*pageTokens]); err != nil {
			return err
		}
	}
	return nil
}
