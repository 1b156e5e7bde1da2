// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// combineScratch is the scratch memory of a worker that combines the parts of a query.
type combineScratch struct {
	acc   []float64 // [group, sides, padV]
	top   []float64 // [group]
	sum   []float64 // [group]
	gains []float64 // [entries of all parts, group]: masses, times sum
	mass  []float64 // [entries of the list]
	rot   []float64 // [head_dim_v]
	back  []float32 // [head_dim_v]
	means []float32 // [group, padV]: sums of the means in a tile
	w     []float32 // [group, tileRows]: weights of the means
}

// combine combines the parts of a unit in the order of the list and writes the results.
func (s *scratch) combine(c *call, u *unit, parts []part) error {
	p, x := &c.prepared, &s.combining
	x.acc = grow(x.acc, p.Group*sides*c.padV)
	x.top, x.sum = grow(x.top, p.Group), grow(x.sum, p.Group)
	x.rot, x.back = grow(x.rot, p.HeadDimV), grow(x.back, p.HeadDimV)
	for i, q := range u.qs {
		clear(x.acc)
		for h := range p.Group {
			x.head(parts, i*p.Group+h, h, c.padV)
		}
		if u.masses {
			x.gain(c, u, parts, i)
			if c.to.Mass != nil {
				x.masses(c, u, c.to.Mass[c.BlockPtr[q]:c.BlockPtr[q+1]])
			}
			if err := s.addMeans(c, u); err != nil {
				return err
			}
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
		f := math.Exp(float64(parts[i].top[head]) - top)
		sum += f * parts[i].sum[head]
		for k, used := range parts[i].used {
			if !used {
				continue
			}
			to, from := x.side(h, k, padV), parts[i].acc[k][head*padV:][:padV]
			for d := range to {
				to[d] += f * from[d]
			}
		}
	}
	x.top[h], x.sum[h] = top, sum
}

// gain collects what the entries of the list add to the sums of the query's heads.
func (x *combineScratch) gain(c *call, u *unit, parts []part, query int) {
	group, heads := c.Group, len(u.qs)*c.Group
	n := 0
	for i := range parts {
		n += len(parts[i].mass) / heads
	}
	x.gains = grow(x.gains, n*group)
	for h := range group {
		head, at := query*group+h, h
		last, f := float32(math.NaN()), 0.0
		for i := range parts {
			for k := head; k < len(parts[i].mass); k += heads {
				g := parts[i].mass[k]
				if g != 0 { // NaN is not 0
					if t := parts[i].massTop[k]; t != last {
						last, f = t, math.Exp(float64(t)-x.top[h])
					}
					g *= f
				}
				x.gains[at] = g
				at += group
			}
		}
	}
}

// masses writes the mass of every entry of the list.
func (x *combineScratch) masses(c *call, u *unit, out []float32) {
	x.mass = grow(x.mass, len(out))
	clear(x.mass)
	at := 0
	for i := range u.pieces() {
		from, to := c.piece(u, i)
		for k := range entriesOf(from, to) {
			for h := range c.Group {
				if g := x.gains[at+h]; g != 0 {
					x.mass[from.entry+k] += g / x.sum[h]
				}
			}
			at += c.Group
		}
	}
	for e, m := range x.mass {
		out[e] = float32(m)
	}
}

// addMeans adds the means of V sides, weighted by the masses of their blocks. Neighbouring entries
// with one mean are one row of a tile.
func (s *scratch) addMeans(c *call, u *unit) error {
	x, group := &s.combining, c.Group
	x.w, x.means = grow(x.w, group*tileRows), grow(x.means, group*c.padV)
	clear(x.w)
	clear(x.means)
	s.vt = grow(s.vt, 2*tileRows*c.padV) // a kernel takes a whole tile from any row on
	n, at := 0, 0                        // means in the tile, index of gains
	var last backend.Span
	for i := range u.pieces() {
		from, to := c.piece(u, i)
		for k := range entriesOf(from, to) {
			e := c.view.At(int(u.list[from.entry+k]))
			if e.MeanV.Buf != nil {
				if n == 0 || e.MeanV != last {
					if n == tileRows {
						s.foldMeans(c, n)
						n = 0
					}
					if err := s.unpackMean(c, &e.MeanV, n); err != nil {
						return fmt.Errorf("kvist/cpu: attend: block %d: %w", u.list[from.entry+k], err)
					}
					last = e.MeanV
					n++
				}
				for h := range group {
					x.w[h*tileRows+n-1] += float32(x.gains[at+h])
				}
			}
			at += group
		}
	}
	if n > 0 {
		s.foldMeans(c, n)
	}
	return nil
}

// unpackMean unpacks a mean of V to row r of the tile.
func (s *scratch) unpackMean(c *call, span *backend.Span, r int) error {
	var mem []byte
	if !spanAgain(&mem, span) {
		return errFreed()
	}
	c.kern.Unpack(s.vt[r*c.padV:], c.kern.LayoutV(meanCoding.Format), meanCoding, mem, 1, c.HeadDimV, 0, 1,
		&s.unpackT)
	return nil
}

// foldMeans adds a tile of n means to the sums in the original basis.
func (s *scratch) foldMeans(c *call, n int) {
	x := &s.combining
	if finiteAll(s.vt[:n*c.padV]) {
		c.kern.Accumulate(x.means, x.w, c.Group, s.vt, c.padV, n)
	} else {
		attend.AccumulateLive(x.means, x.w, c.Group, s.vt, c.padV, n)
	}
	for h := range c.Group {
		c.kern.Fold(x.side(h, exactSide, c.padV), x.means[h*c.padV:(h+1)*c.padV])
	}
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
	attend.Restore(x.rot, x.side(h, rotatedSide, p.padV), p.kern.LayoutV(quant.LM1))
	bytes, exact := x.side(h, bytesSide, p.padV), x.side(h, exactSide, p.padV)
	for d := range x.back {
		x.back[d] = float32((x.rot[d] + bytes[d]) / sum)
	}
	if rot != nil {
		p.codec.Inverse(rot, x.back, 1, p.HeadDimV)
	}
	for d := range out {
		out[d] = float32(exact[d]/sum + float64(x.back[d]))
	}
}
