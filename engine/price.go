// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"
)

// priceOf returns the damage of the next demotion of a side for each byte that it frees. Errors of V cost
// a^2 |dv|^2 and errors of K a^2 |v - out|^2 (q.dk)^2 / head_dim, both over |out|^2, with a the attention
// of the row. Dropped rows are missed together, so their errors add up and not their squares.
func (p *pressure) priceOf(b *block, side, head int) float64 {
	c := p.c
	f := p.factor
	heads := c.geo.Layers * c.geo.KVHeads
	r := b.rung[side]
	m := math.Sqrt(float64(b.mass)) + p.floor[head]*math.Sqrt(float64(b.rows))
	m *= m
	ek, ev := f[head]*float64(b.energy[sideK]), f[heads+head]*float64(b.energy[sideV])
	var d float64
	switch {
	case r == lm1:
		d = m * (1 + ev) * float64(b.rows) * coherence
	case side == sideK:
		d = m * (1 + ev) * ek * steps[sideK][r]
	default:
		d = m * ev * steps[sideV][r]
	}
	return d * c.cfg.sensitivity(side, head) / float64(p.frees(b, side))
}

// coherence is the part of the rows of a block whose errors add up when it is dropped.
const coherence = 0.5

// steps are the errors that a rung has less than the next one, in units of the row's energy. Below three
// bits errors of K do more harm than their first order says: the softmax is not linear in them.
var steps = func() (t [sides][rungs]float64) {
	worse := [rungs]float64{lm1: 4, lm2: 3.2, lm3: 1.6, lm4: 1, u8: 1}
	for r := lm2; r <= f16; r++ {
		t[sideV][r] = noises[r-1] - noises[r]
		t[sideK][r] = noises[r-1]*worse[r-1] - noises[r]*worse[r]
	}
	return t
}()

// bucket returns the number of the bucket of a price.
func bucket(price float64) int {
	if !(price > 0) {
		return 0
	}
	return min(max(int((math.Log2(price)-lowestPrice)*bucketsOctave), 0), buckets-1)
}

// weighHeads sets the factors of the heads from the kept queries of every sequence: what an error in the
// whole energy of a row costs at mass 1, for a row of energy 1.
func (p *pressure) weighHeads() {
	c := p.c
	g, w := c.geo, &c.pressure
	heads := g.Layers * g.KVHeads
	for l := range g.Layers {
		for h := range g.KVHeads {
			var q2, out2, n float64
			for _, q := range c.seqs {
				x, o, k := p.energies(&q.kept, l, h)
				q2, out2, n = q2+x, out2+o, n+k
			}
			i := l*g.KVHeads + h
			w.factor[i], w.factor[heads+i] = 1, 1
			if n > 0 {
				s := float64(c.cfg.Scale)
				w.factor[i] = q2 / n * s * s / float64(g.HeadDim)
			}
			if out2 > 0 {
				w.factor[heads+i] = n / out2
			}
		}
	}
	p.setFloors()
}

// floorShare is the attention that every row is taken to get, as a share of the mean of its head. Past
// queries do not know what later ones will ask for.
const floorShare = 0.1

// setFloors sets the floors to a share of the mean root mean square attention of a row.
func (p *pressure) setFloors() {
	w := p
	clear(w.floor)
	clear(w.count)
	p.eachSegment(func(s *segment) {
		for i := range s.blocks {
			if b := &s.blocks[i]; b.rows > 0 {
				w.floor[i/s.pages] += math.Sqrt(float64(b.mass) * float64(b.rows))
				w.count[i/s.pages] += float64(b.rows)
			}
		}
	})
	for i, n := range w.count {
		if n > 0 {
			w.floor[i] *= floorShare / n
		}
	}
}

// eachSegment calls f once for every closed segment that pressure may change.
func (p *pressure) eachSegment(f func(s *segment)) {
	c := p.c
	p.visited++
	for _, q := range c.seqs {
		if p.only != nil && p.only != q {
			continue
		}
		for _, s := range q.segs {
			if p.only != nil && s.refs-s.listed > 1 {
				continue // a hint takes nothing from other sequences
			}
			if s.closed && !s.sinks && s.pinned == 0 && s.visited != p.visited {
				s.visited, p.owner = p.visited, q
				f(s)
			}
		}
	}
}

// energies returns the sums of |q|^2 and |out|^2 over the kept queries of a head, and how many vectors
// there are.
func (p *pressure) energies(k *kept, layer, head int) (q2, out2, n float64) {
	c := p.c
	g := c.geo
	group := g.GQARatio()
	for i := layer * k.n; i < (layer+1)*k.n; i++ {
		if k.entry[i] < 0 {
			continue
		}
		for h := head * group; h < (head+1)*group; h++ {
			var sum int64
			for _, v := range k.q[(i*g.Heads+h)*g.HeadDim:][:g.HeadDim] {
				sum += int64(v) * int64(v)
			}
			s := float64(k.scale[i*g.Heads+h])
			q2 += float64(sum) * s * s
		}
		out2 += float64(k.out[i*g.KVHeads+head])
		n += float64(group)
	}
	return q2, out2, n
}

// massDecay is what is left of the mass of a block when it is measured again.
const massDecay = 0.75

// repriceParts is the number of calls over which a sequence is measured again: about as many as make room
// until its next segment closes, so that no step pays for all layers.
const repriceParts = 8

// reprice measures again how much the kept queries read every closed block, some layers at a time, in
// sequences of which segments have closed since.
func (p *pressure) reprice() error {
	c := p.c
	var w *closing
	for _, q := range c.seqs {
		if q.stale == 0 {
			continue
		}
		if w == nil {
			var err error
			if w, err = c.takeClosing(); err != nil {
				return nil // without memory to measure in, blocks keep the mass they have
			}
		}
		lo, hi := p.takePart(q)
		for l := lo; l < hi; l++ {
			n := c.keptBefore(w, l, q.n, &q.kept)
			for _, s := range q.segs {
				if n == 0 || s.sinks || !s.closed {
					continue
				}
				if err := c.relevance(context.Background(), w, l, s, n); err != nil {
					return err
				}
				p.addMass(w, l, s)
			}
		}
	}
	if w != nil {
		c.closings = append(c.closings, w)
	}
	return nil
}

// takePart returns the layers of a sequence that are measured now, and makes those after them the next.
func (p *pressure) takePart(q *Sequence) (lo, hi int) {
	layers := p.c.geo.Layers
	for lo == hi && q.stale > 0 {
		part := int(q.stale - 1)
		lo, hi = part*layers/repriceParts, (part+1)*layers/repriceParts
		q.stale = (q.stale + 1) % (repriceParts + 1)
	}
	return lo, hi
}

// addMass folds the sums of w.weight into the masses of a segment's blocks in a layer. A shared segment is
// worth what it is worth to the sequence that reads it most.
func (p *pressure) addMass(w *closing, layer int, s *segment) {
	i := 0
	for h := range p.c.geo.KVHeads {
		blocks := s.of(layer, h, p.c.geo.KVHeads)
		for j := range blocks {
			b := &blocks[j]
			if b.at[sideK] == 0 {
				continue
			}
			var sum float64
			for _, v := range w.weight[w.row[i]:w.row[i+1]] {
				if v > 0 && !math.IsInf(float64(v), 0) {
					sum += float64(v)
				}
			}
			m := float32(sum / float64(w.queries))
			mixed := float32(massDecay*b.mass) + float32((1-massDecay)*m)
			if s.refs > 1 {
				mixed = max(mixed, b.mass)
			}
			b.mass = mixed
			i++
		}
	}
}
