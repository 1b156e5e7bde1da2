// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// combineScratch is the scratch memory of a worker that combines the parts of a query.
type combineScratch struct {
	acc   []float64 // [group, sides, padV]
	top   []float64 // [group]
	sum   []float64 // [group]
	mass  []float64 // [entries of the list]
	rot   []float64 // [head_dim_v]
	back  []float32 // [head_dim_v]
	means []float64 // [group, padV]: sums of means, weighted
	some  []float32 // [group, padV]: of those in a tile
	w     []float32 // [group, tileRows]: weights of the means in a tile
	// [group]: the last reference of an entry's mass, and the factor that goes with it.
	last     []float32
	factor   []float64
	hasMeans bool
	used     [sides]bool // by some part of the query
}

// combine combines the parts of a unit in the order of the list and writes the results.
func (s *scratch) combine(c *call, u *unit, parts []part) error {
	p, x := &c.prepared, &s.combining
	x.acc = grow(x.acc, p.Group*sides*c.padV)
	x.top, x.sum = grow(x.top, p.Group), grow(x.sum, p.Group)
	x.rot, x.back = grow(x.rot, p.HeadDimV), grow(x.back, p.HeadDimV)
	for i, q := range u.qs {
		clear(x.acc)
		x.hasMeans, x.used = false, [sides]bool{}
		for k := range parts {
			for side, used := range parts[k].used {
				x.used[side] = x.used[side] || used
			}
		}
		for h := range p.Group {
			x.head(parts, i*p.Group+h, h, c.padV)
		}
		if c.to.Mass != nil {
			x.masses(c, u, parts, i, c.to.Mass[c.BlockPtr[q]:c.BlockPtr[q+1]])
		}
		if u.means && !s.addMeans(c, u, parts, i) {
			return errFreed()
		}
		rot := p.rotV(int(q))
		for h := range p.Group {
			at := int(q)*p.Group + h
			x.finish(p, h, rot, c.to.Out[at*p.HeadDimV:(at+1)*p.HeadDimV])
			if c.to.LSE != nil {
				c.to.LSE[at] = float32(x.top[h] + math.Log(x.sum[h]))
			}
		}
	}
	return nil
}

// side returns the sums of a head of the query on one side.
func (x *combineScratch) side(h, side, padV int) []float64 {
	return x.acc[(h*sides+side)*padV:][:padV]
}

// head combines the parts of one head of the unit, head h of its query.
func (x *combineScratch) head(parts []part, head, h, padV int) {
	top, sum := negInf, 0.0
	for i := range parts {
		if parts[i].sum[head] != 0 { // NaN is not 0
			top = max(top, float64(parts[i].top[head]))
		}
	}
	for i := range parts {
		if parts[i].sum[head] == 0 {
			continue
		}
		f := 1.0
		if t := float64(parts[i].top[head]); t != top {
			f = math.Exp(t - top)
		}
		sum += f * parts[i].sum[head]
		for k, used := range parts[i].used {
			if !used {
				continue
			}
			to := x.side(h, k, padV)
			from := parts[i].acc[k][head*padV:][:len(to)]
			for d := range to {
				to[d] += f * from[d]
			}
		}
	}
	x.top[h], x.sum[h] = top, sum
}

// masses computes the mass of every entry of the list for a query and writes it to out.
func (x *combineScratch) masses(c *call, u *unit, parts []part, query int, out []float32) {
	heads := len(u.qs) * c.Group
	x.mass = grow(x.mass, len(u.list))
	clear(x.mass)
	x.forget(c.Group)
	at := query * c.Group
	for i := range parts {
		from, _ := c.piece(u, i)
		mass, tops := parts[i].tally[massTally].sums, parts[i].tally[massTally].tops
		sums := x.mass[from.entry:]
		for k := range len(tops) / heads {
			sums[k] += x.weigh(mass[k*heads+at:], tops[k*heads+at:])
		}
	}
	for e, m := range x.mass {
		out[e] = float32(m)
	}
}

// forget makes weigh compute the factors of heads anew.
func (x *combineScratch) forget(group int) {
	x.last, x.factor = grow(x.last, group), grow(x.factor, group)
	for h := range x.last {
		x.last[h] = float32(math.NaN())
	}
}

// weigh returns the sum of the masses of the query's heads, from sums relative to tops. It keeps the factor
// of each head, which changes with the reference only.
func (x *combineScratch) weigh(gains []float64, tops []float32) (sum float64) {
	last := x.last
	factor, gains, tops := x.factor[:len(last)], gains[:len(last)], tops[:len(last)]
	for h := range last {
		g := gains[h]
		if g == 0 { // NaN is not 0
			continue
		}
		if t := tops[h]; t != last[h] {
			last[h], factor[h] = t, math.Exp(float64(t)-x.top[h])/x.sum[h]
		}
		sum += g * factor[h]
	}
	return sum
}

// addMeans sums the means of V sides, weighted by the masses of their blocks. Neighbouring entries
// with one mean are one row of a tile. It returns false if the memory of one was freed.
func (s *scratch) addMeans(c *call, u *unit, parts []part, query int) bool {
	x, group, heads := &s.combining, c.Group, len(u.qs)*c.Group
	x.w, x.some = grow(x.w, group*tileRows), grow(x.some, group*c.padV)
	clear(x.w)
	clear(x.some)
	s.vt = grow(s.vt, tileRows*c.padV)
	x.forget(group)
	n := 0 // means in the tile
	var last args.Place
	for i := range parts {
		from, _ := c.piece(u, i)
		mass, tops := parts[i].tally[meanTally].sums, parts[i].tally[meanTally].tops
		for k := range len(tops) / heads {
			at := k*heads + query*group
			gains := mass[at : at+group]
			if allZero(gains) {
				continue
			}
			e := c.view.At(int(u.list[from.entry+k]))
			mean := c.view.Group(e.Group).Key.MeanV
			if mean.Slab == 0 {
				continue
			}
			if n == 0 || last != mean {
				if n == tileRows {
					s.foldMeans(c, n)
					n = 0
				}
				last = mean
				row := s.vt[n*c.padV : (n+1)*c.padV]
				if !c.meanOf(c.view, mean, row[:c.HeadDimV]) {
					return false
				}
				clear(row[c.HeadDimV:])
				n++
			}
			x.weigh(gains, tops[at:])
			for h, g := range gains {
				if g != 0 {
					x.w[h*tileRows+n-1] += float32(g * x.factor[h])
				}
			}
		}
	}
	if n > 0 {
		s.foldMeans(c, n)
	}
	return true
}

func allZero(x []float64) bool {
	for _, v := range x {
		if v != 0 {
			return false
		}
	}
	return true
}

// foldMeans adds a tile of n means to the sums of means.
func (s *scratch) foldMeans(c *call, n int) {
	x := &s.combining
	if !x.hasMeans {
		x.hasMeans = true
		x.means = grow(x.means, c.Group*c.padV)
		clear(x.means)
	}
	if finiteAll(s.vt[:n*c.padV]) {
		c.kern.Accumulate(x.some, x.w, c.Group, s.vt, c.padV, n)
	} else {
		attend.AccumulateLive(x.some, x.w, c.Group, s.vt, c.padV, n)
	}
	c.kern.Fold(x.means, x.some)
	clear(x.w)
}

// finish writes (exact + inverse rotation of rotated) / sum of head h, and zeros for a head that saw
// no row. It rotates the sums of the rotated basis back once.
func (x *combineScratch) finish(p *prepared, h int, rot *codec.Rotation, out []float32) {
	sum := x.sum[h]
	if sum == 0 {
		clear(out)
		return
	}
	factor := 1 / sum
	x.scaleBack(p, h, factor)
	if rot != nil {
		p.codec.Inverse(rot, x.back, 1, p.HeadDimV)
	}
	copy(out, x.back)
	if x.used[exactSide] {
		for d, e := range x.side(h, exactSide, p.padV)[:len(out)] {
			out[d] = float32(e*factor + float64(out[d]))
		}
	}
	if x.hasMeans {
		for d, m := range x.means[h*p.padV:][:len(out)] {
			out[d] = float32(float64(out[d]) + m)
		}
	}
}

// scaleBack writes the sums of the rotated basis of head h times factor.
func (x *combineScratch) scaleBack(p *prepared, h int, factor float64) {
	bytes := x.side(h, bytesSide, p.padV)[:len(x.back)]
	if !x.used[rotatedSide] {
		for d, b := range bytes {
			x.back[d] = float32(b * factor)
		}
		return
	}
	attend.Restore(x.rot, x.side(h, rotatedSide, p.padV), p.kern.LayoutV(quant.LM1))
	for d, b := range bytes {
		x.back[d] = float32((x.rot[d] + b) * factor)
	}
}
