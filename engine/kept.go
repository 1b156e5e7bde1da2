// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"math"
)

// kept are recent queries of every layer, in 8 bits a value: what weighs the tokens of a segment that
// closes, and prices blocks under pressure. One query in every stride positions is kept, the last
// ones only; entry j is the query at position (j+1)*stride-1. So which queries weigh a segment is a
// function of positions alone.
type kept struct {
	n     int       // entries of a layer
	q     []int8    // [layers, n, heads, head_dim]
	scale []float32 // [layers, n, heads]
	lse   []float32 // [layers, n, heads]
	out   []float32 // [layers, n, kv_heads]: |output|^2, summed over the heads of a KV head
	entry []int64   // [layers, n]: j, or -1
}

// keptBytes returns the bytes of n entries a layer.
func (c *memory) keptBytes(n int) int64 {
	g := c.geo
	return int64(g.Layers*n) * int64(g.Heads*g.HeadDim+8*g.Heads+4*g.KVHeads+8)
}

func (c *memory) newKept(n int) kept {
	g := c.geo
	k := kept{n: n, q: make([]int8, g.Layers*n*g.Heads*g.HeadDim), scale: make([]float32, g.Layers*n*g.Heads),
		lse: make([]float32, g.Layers*n*g.Heads), out: make([]float32, g.Layers*n*g.KVHeads),
		entry: make([]int64, g.Layers*n)}
	k.forget(0)
	return k
}

// forget drops the entries from j on.
func (k *kept) forget(j int64) {
	for i := range k.entry {
		if k.entry[i] >= j {
			k.entry[i] = -1
		}
	}
}

// holds reports whether entry j of a layer is there, and where.
func (k *kept) holds(layer int, j int64) (int, bool) {
	if k.n == 0 {
		return 0, false
	}
	i := layer*k.n + int(j%int64(k.n))
	return i, k.entry[i] == j
}

// put records entry j of a layer, q [heads, head_dim] and out [heads, head_dim_v], and returns its place.
// The caller fills in lse.
func (c *memory) put(k *kept, layer int, j int64, q, out []float32) int {
	g := c.geo
	i := layer*k.n + int(j%int64(k.n))
	k.entry[i] = j
	for h := range g.Heads {
		k.scale[i*g.Heads+h] = pack8(k.q[(i*g.Heads+h)*g.HeadDim:][:g.HeadDim], q[h*g.HeadDim:])
	}
	run := g.GQARatio() * g.HeadDimV
	for h := range g.KVHeads {
		var e float64
		for _, x := range out[h*run : (h+1)*run] {
			e += float64(x) * float64(x)
		}
		k.out[i*g.KVHeads+h] = float32(e)
	}
	return i
}

// pack8 rounds values to 8 bits and returns what a step is worth. A row that is not finite becomes
// zero: its query cannot weigh anything.
func pack8(dst []int8, x []float32) float32 {
	x = x[:len(dst)]
	var top float32
	for _, v := range x {
		top = max(top, float32(math.Abs(float64(v)))) // max keeps a NaN
	}
	if !(top > 0) || math.IsInf(float64(top), 0) {
		clear(dst)
		return 0
	}
	step := top / 127
	for i, v := range x {
		dst[i] = int8(math.RoundToEven(float64(v) / float64(step)))
	}
	return step
}

// copyEntry copies an entry of a layer between stores.
func (c *memory) copyEntry(dst, src *kept, layer int, j int64) {
	i, ok := src.holds(layer, j)
	if !ok {
		return
	}
	g := c.geo
	o := layer*dst.n + int(j%int64(dst.n))
	dst.entry[o] = j
	copyRow(dst.q, src.q, o, i, g.Heads*g.HeadDim)
	copyRow(dst.scale, src.scale, o, i, g.Heads)
	copyRow(dst.lse, src.lse, o, i, g.Heads)
	copyRow(dst.out, src.out, o, i, g.KVHeads)
}

func copyRow[T any](dst, src []T, o, i, n int) { copy(dst[o*n:(o+1)*n], src[i*n:(i+1)*n]) }

// entries returns the range of entries that a query at position p would find.
func (c *memory) entries(p int64) (from, to int64) {
	to = p / int64(c.stride)
	return max(0, to-int64(c.cfg.KeptQueries)), to
}

// keptBefore fills w.q, w.lse and w.pos with the kept queries before position p, and returns how many
// there are.
func (c *memory) keptBefore(w *closing, layer int, p int64, from ...*kept) (n int) {
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
func (c *memory) unpackEntry(k *kept, i int, q, lse []float32, pos []int64, n int, at int64) {
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
