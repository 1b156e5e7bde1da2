// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/engine/store"
)

// priceOf returns the damage of a side's step down from a rung for each byte that it frees. Errors of V cost
// a^2 |dv|^2 and errors of K a^2 |v - out|^2 (q.dk)^2 / head_dim, with a the attention of the row, both over the
// mean output of the heads of the layer: a head that reads a sink only, and puts out next to nothing, cannot
// claim bytes for it. Dropped rows are missed together, so their errors add up and not their squares.
//
// That is for queries like those seen. Others are taken to put all their attention on one row, whichever: see
// unseen.
func (p *pressure) priceOf(b *block, side, head int, r rung) float64 {
	c := p.c
	f := p.factor
	heads := c.geo.Layers * c.geo.KVHeads
	m := float64(b.mass)
	ek, ev, out := f[head]*float64(b.energy[sideK]), f[heads+head]*float64(b.energy[sideV]), p.out[head]
	asked := 0.0
	if p.owner != nil {
		asked = unseen * float64(b.rows) / float64(max(p.owner.n, 1))
	}
	var d float64
	switch {
	case r == lm1:
		d = m*(out+ev)*float64(b.rows)*coherence + asked*ev*(goneAsked-missed(ek, lm1)-noises[lm1])
	case side == sideK:
		d = m*(out+ev)*ek*steps[sideK][r] + asked*ev*(missed(ek, r-1)-missed(ek, r))
	default:
		d = (m + asked) * ev * steps[sideV][r]
	}
	return d * c.cfg.sensitivity(side, head) / float64(p.freesFrom(side, r))
}

// unseen is the share of later queries that are unlike those seen.
const unseen = 0.03

// missed returns the part of the queries that look for a row of K in a rung and read another one, because the
// noise of the scores is larger than what the row stands out by. ek is the variance of a score of K alone.
func missed(ek float64, r rung) float64 {
	x := ek * noises[r]
	return x / (x + standsOut)
}

// standsOut is the square of what a row that is looked for stands out by, in nats.
const standsOut = 2

// goneAsked is what a query loses that looks for a row which is gone, where 1 is all that the row would have
// given: something else takes its place.
const goneAsked = 2

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

// rank is the bucket of a step of a segment. Rows of what is published are dropped when nothing else is left to give: a
// sequence that has lost one is found no more, and publishes no more.
func (p *pressure) rank(s *segment, to rung, price float64) int {
	if to == gone && p.c.cfg.Shared != nil && s.published != (store.Key{}) {
		return buckets - 1
	}
	return bucket(price)
}

// weighHeads sets the factors of the heads from the kept queries of every sequence: what an error in the
// whole energy of a row costs at mass 1, for a row of energy 1, and what the head puts out beside others.
func (p *pressure) weighHeads() {
	c := p.c
	g := c.geo
	heads := g.Layers * g.KVHeads
	for l := range g.Layers {
		mean := 0.0
		for i := l * g.KVHeads; i < (l+1)*g.KVHeads; i++ {
			var q2, out2, n float64
			for _, q := range c.seqs {
				x, o, k := p.energies(&q.kept, l, i%g.KVHeads)
				q2, out2, n = q2+x, out2+o, n+k
			}
			if n == 0 { // all sequences are idle: what the last ones told holds on
				continue
			}
			s := float64(c.cfg.Scale)
			p.factor[i], p.out[i] = q2/n*s*s/float64(g.HeadDim), out2/n
			mean += p.out[i] / float64(g.KVHeads)
		}
		for i := l * g.KVHeads; i < (l+1)*g.KVHeads && mean > 0; i++ {
			p.factor[heads+i] = 1 / mean
			p.out[i] /= mean
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
			if err := p.remeasure(w, q, l); err != nil {
				return err
			}
		}
	}
	if w != nil {
		c.closings = append(c.closings, w)
	}
	return nil
}

// remeasure measures again how much the kept queries of a sequence read its closed blocks of a layer.
func (p *pressure) remeasure(w *closing, q *Sequence, layer int) error {
	n := p.c.keptBefore(w, layer, q.n, &q.kept)
	for _, s := range q.segs {
		if n == 0 || s.sinks || !s.closed {
			continue
		}
		if err := p.c.relevance(context.Background(), w, layer, s, n); err != nil {
			return err
		}
		p.addMass(w, layer, s)
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

// eachBlock calls f for every closed block that pressure may change, until f returns false. The order depends on
// the order of sequences and segments only.
func (p *pressure) eachBlock(f func(s *segment, i int) bool) {
	stop := false
	p.eachSegment(func(s *segment) {
		for i := 0; i < len(s.blocks) && !stop; i++ {
			if s.blocks[i].at[sideK] != 0 {
				stop = !f(s, i)
			}
		}
	})
}

// eachStep calls f for the steps that the sides of a block can go down, each after those before it, with the rung
// that it leads to, its price and the bytes that it frees. No step is cheaper than one before it. When f returns
// false, the side goes no further. The last one, of both sides together, drops the rows.
func (p *pressure) eachStep(b *block, head int, f func(side int, to rung, price float64, n int64) bool) {
	top, all := 0.0, true
	for side := range sides {
		price := 0.0
		for r := b.rung[side]; r > lm1; r-- {
			price = max(price, p.priceOf(b, side, head, r))
			if !f(side, r-1, price, p.freesFrom(side, r)) {
				all = false
				break
			}
		}
		top = max(top, price)
	}
	if all {
		f(sideK, gone, max(top, p.priceOf(b, sideK, head, lm1)), p.freesFrom(sideK, lm1))
	}
}

// frees returns the bytes that the next demotion of a side frees, 0 if there is none. Rows are dropped as a
// whole: K goes last.
func (p *pressure) frees(b *block, side int) int64 {
	if r := b.rung[side]; r > lm1 || side == sideK && b.rung[sideV] == lm1 {
		return p.freesFrom(side, r)
	}
	return 0
}

// freesFrom returns the bytes that the step down from a rung frees; from the last one, those of both sides.
func (p *pressure) freesFrom(side int, r rung) int64 {
	z := p.c.sizes
	if r == lm1 {
		return z.bytes(sideK, lm1) + z.bytes(sideV, lm1) + z.classes[z.pos]
	}
	return z.bytes(side, r) - z.bytes(side, r-1)
}
