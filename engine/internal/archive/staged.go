// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"
)

// worth is a squared error in squared steps, as the upper half of a float32.
type worth uint16

func newWorth(v float64) worth {
	if !(v > 0) {
		return 0
	}
	return worth((math.Float32bits(float32(min(v, 1e38))) + 1<<15) >> 16)
}

func (w worth) value() float64 { return float64(math.Float32frombits(uint32(w) << 16)) }

func (w worth) valid() bool { return w < 0x7f80 }

// stream is a part of a payload that can be dropped. A dropped stream keeps its worth.
type stream struct {
	b     []byte
	worth worth
	at    int // offset in the payload
}

// streamsOf returns the stream of every token of a head in a refinement, which its part and its group
// give.
func (c *Codec) streamsOf(class []uint8, parts int) []uint8 {
	g := make([]uint8, len(class))
	for t, k := range class {
		g[t] = uint8(t*parts/len(class)*NumGroups + groupOf(c.Class8[k]))
	}
	return g
}

// stages returns the stages of a lane, the base last. Stage r lacks r refinements.
func stages(coders []*coder, l *lane) []stage {
	s := make([]stage, len(coders))
	for r := range s {
		s[r] = stage{coder: coders[r], l: l, left: r}
	}
	return s
}

// base returns the lane with the coarse steps of the base: each refinement halves them once.
func (l *lane) base(refinements int) *lane {
	b := &lane{rows: l.rows, dim: l.dim, std8: l.std8, step8: make([]int16, l.rows)}
	for t, s := range l.step8 {
		b.step8[t] = s + int16(8*refinements)
	}
	return b
}

// stagedEncoder encodes the lanes of a record, one after the other, as base and refinements.
type stagedEncoder struct {
	*Codec
	coders  []*coder
	fine    *rowQuantizer   // of the finest step
	exact   []*rowQuantizer // of all stages: one that changes no whole number
	quick   *levels
	sinks   [][]laneSink // of each refinement, the coarsest first
	rows    [][]int      // rows that each has
	want    []int32      // levels of the lane at the finest step
	levels  []int32      // at the stage at work
	y, ones []float32

	base           []worth     // of lanes: what their bases are worth
	err            [][]float64 // of each stage and stream
	energy, before float64
}

func (c *Codec) newStagedEncoder(refinements, streams int, e Effort, quick *levels) *stagedEncoder {
	s := &stagedEncoder{Codec: c, coders: c.coders(refinements + 1), fine: c.c.quantizer(e.Lambda), quick: quick,
		sinks: table[laneSink](refinements, streams), rows: table[int](refinements, streams),
		err: table[float64](refinements+1, streams)}
	for _, x := range s.coders {
		s.exact = append(s.exact, x.quantizer(0))
	}
	return s
}

// table returns rows of n values.
func table[T any](rows, n int) [][]T {
	t := make([][]T, rows)
	for i := range t {
		t[i] = make([]T, n)
	}
	return t
}

// lane appends the base of a lane to dst and keeps its refinements.
func (s *stagedEncoder) lane(dst []byte, l *lane, y, steps []float32, of []uint8) []byte {
	s.quick.quantize(s.fine, l, y, steps)
	s.want = s.quick.signed(s.fine, s.want, l)
	refinements := len(s.sinks)
	base := l.base(refinements)
	s.y, s.levels = slices.Grow(s.y[:0], len(y))[:len(y)], slices.Grow(s.levels[:0], len(y))[:len(y)]
	for i, m := range s.want {
		s.y[i] = float32(m / (1 << refinements))
	}
	for len(s.ones) < l.rows {
		s.ones = append(s.ones, 1)
	}
	at := len(dst)
	s.quick.quantize(s.exact[refinements], base, s.y, s.ones[:l.rows])
	dst = s.quick.encode(dst, s.exact[refinements], base)
	// Levels above 2^23 may be decoded as a neighbour. What follows describes the decoded ones.
	s.coders[refinements].decodeOne(base, dst[at:], s.y)
	toLevels(s.levels, s.y)
	stages := stages(s.coders, l)
	worst := s.measure(&stages[refinements], y, steps, of)
	s.base = append(s.base, newWorth(s.energy-s.before-worst))
	s.before = s.energy
	for r := refinements - 1; r >= 0; r-- {
		s.refine(&stages[r+1], &stages[r], of)
		s.measure(&stages[r], y, steps, of)
	}
	return dst
}

// toLevels turns values back into the whole numbers that they were made of.
func toLevels(levels []int32, values []float32) {
	for i, v := range values {
		if v < 0 {
			levels[i] = -int32(0.5 - v)
		} else {
			levels[i] = int32(v + 0.5)
		}
	}
}

// refine keeps the symbols of a refinement and brings the levels to its stage.
func (s *stagedEncoder) refine(from, to *stage, of []uint8) {
	l := to.l
	n := len(s.sinks) - 1 - to.left
	for t := range l.rows {
		g := of[t]
		sink, state := &s.sinks[n][g], s.rows[n][g]&1
		s.rows[n][g]++
		coarse, fine := from.scales(l.step8[t]), to.scales(l.step8[t])
		levels, want := s.levels[t*l.dim:(t+1)*l.dim], s.want[t*l.dim:(t+1)*l.dim]
		shift := from.shift(coarse, levels)
		for i, scale := range fine.scale {
			if !coded(int(scale)) {
				continue
			}
			at, aim := int(scale)+shift, want[i]/(1<<to.left)
			if !coded(int(coarse.scale[i])) { // it starts here
				m, _ := s.exact[to.left].one(state, float32(aim), at, int(scale), sink)
				if levels[i] = int32(m); aim < 0 {
					levels[i] = -levels[i]
				}
				continue
			}
			k := refineClass(at)
			if levels[i] == 0 {
				levels[i] = min(max(aim, -1), 1)
				sink.put(state, to.refined.fromZero(k, int(levels[i])))
				continue
			}
			u := max(levels[i], -levels[i])
			bit := min(max(max(aim, -aim)-2*u, 0), 1)
			sink.put(state, to.refined.interval(k, uint32(u), uint32(bit)))
			if levels[i] > 0 {
				levels[i] = 2*u + bit
			} else {
				levels[i] = -2*u - bit
			}
		}
	}
}

// measure adds up the squared errors of a lane at a stage, in squared steps, and returns them.
func (s *stagedEncoder) measure(st *stage, y, steps []float32, of []uint8) (sum float64) {
	l := st.l
	for t := range l.rows {
		out := s.y[:l.dim]
		st.values(out, st.scales(l.step8[t]), s.levels[t*l.dim:(t+1)*l.dim])
		var e, all float64
		inv := 1 / steps[t]
		for i, v := range y[t*l.dim : (t+1)*l.dim] {
			x := float64(v * inv)
			d := x - float64(out[i])
			e, all = e+d*d, all+x*x
		}
		s.err[st.left][of[t]] += e
		sum += e
		if st.left == len(s.sinks) {
			s.energy += all
		}
	}
	return sum
}

// encodeStaged is Encode for several stages.
func (c *Codec) encodeStaged(dst []byte, p *Prepared, step8 int, e Effort, quick *levels) []byte {
	n := max(1, p.seg.Parts)
	s := c.newStagedEncoder(p.seg.Chunks-1, n*NumGroups, e, quick)
	parts := &streams{constants: p.constants, chunks: p.seg.Chunks, parts: n, side: c.encodeSide(nil, p, &p.told, step8)}
	for i := range p.y {
		l, steps := c.lane(p.seg, i, &p.told, p.step(i, step8))
		parts.lanes = append(parts.lanes, stream{b: s.lane(nil, l, p.y[i], steps, c.streamsOf(p.seg.Class[i/len(p.seg.Dims)], n))})
		parts.lanes[i].worth = s.base[i]
	}
	var left float64
	for n := range s.sinks {
		refined := make([]stream, len(s.sinks[n]))
		for g := range refined {
			r := len(s.sinks) - n
			refined[g].worth = newWorth(s.err[r][g] - s.err[r-1][g])
			if s.rows[n][g] > 0 {
				refined[g].b = ransEncode(nil, s.sinks[n][g].syms, s.sinks[n][g].state, probBits)
			}
		}
		parts.refined = append(parts.refined, refined)
	}
	for _, e := range s.err[0] {
		left += e
	}
	parts.energy, parts.err = newWorth(s.energy), newWorth(left)
	return parts.append(dst)
}

// stagedDecoder decodes the lanes of a record, one after the other.
type stagedDecoder struct {
	*Codec
	coders []*coder
	parts  *streams
	ds     [][]ransDecoder
	rows   [][]int
	levels []int32
}

func (c *Codec) newStagedDecoder(parts *streams) *stagedDecoder {
	d := &stagedDecoder{Codec: c, parts: parts,
		ds:   table[ransDecoder](len(parts.refined), parts.parts*NumGroups),
		rows: table[int](len(parts.refined), parts.parts*NumGroups)}
	if len(parts.refined) > 0 {
		d.coders = c.coders(len(parts.refined) + 1)
	}
	for n := range d.ds {
		for g, s := range parts.refined[n] {
			if len(s.b) > 0 {
				d.ds[n][g] = newRansDecoder(s.b)
			}
		}
	}
	return d
}

// missing returns how many refinements the tokens of each stream lack.
func (s *streams) missing() []int {
	left := make([]int, s.parts*NumGroups)
	for _, r := range s.refined {
		for g := range r {
			if len(r[g].b) == 0 {
				left[g]++
			}
		}
	}
	return left
}

// lane decodes lane i into y, in steps.
func (d *stagedDecoder) lane(i int, l *lane, y []float32, of []uint8) error {
	refinements := len(d.ds)
	b := d.parts.lanes[i]
	if len(b.b) == 0 {
		clear(y)
		return nil
	}
	if !d.coders[refinements].decodeOne(l.base(refinements), b.b, y) {
		return corrupt("lane", -1, -1, b.at, "the stream of lane %d does not end where it should", i)
	}
	d.levels = slices.Grow(d.levels[:0], len(y))[:len(y)]
	toLevels(d.levels, y)
	stages := stages(d.coders, l)
	left := d.parts.missing()
	for n := range d.ds {
		d.refine(n, &stages[refinements-n], &stages[refinements-n-1], of)
		for g := range d.ds[n] {
			if x := &d.ds[n][g]; x.pos > len(x.b)+8 {
				return d.ends(n, g)
			}
		}
	}
	for t := range l.rows {
		st := &stages[left[of[t]]]
		st.values(y[t*l.dim:(t+1)*l.dim], st.scales(l.step8[t]), d.levels[t*l.dim:(t+1)*l.dim])
	}
	return nil
}

func (d *stagedDecoder) ends(n, g int) error {
	return corrupt("refinement", -1, -1, d.parts.refined[n][g].at, "stream %d of refinement %d does not end where it should", g, n)
}

// refine takes the levels of a lane to the stage of refinement n, where its streams are there.
func (d *stagedDecoder) refine(n int, from, to *stage, of []uint8) {
	l := to.l
	for t := range l.rows {
		g := of[t]
		if len(d.parts.refined[n][g].b) == 0 {
			continue
		}
		x, state := &d.ds[n][g], d.rows[n][g]&1
		d.rows[n][g]++
		coarse, fine := from.scales(l.step8[t]), to.scales(l.step8[t])
		levels := d.levels[t*l.dim : (t+1)*l.dim]
		shift := from.shift(coarse, levels)
		for i, scale := range fine.scale {
			switch {
			case !coded(int(scale)):
			case !coded(int(coarse.scale[i])):
				v, m := to.next(x, state, int(scale)+shift)
				if levels[i] = int32(m); v < 0 {
					levels[i] = -levels[i]
				}
			default:
				levels[i] = to.refined.refine(x, state, refineClass(int(scale)+shift), levels[i])
			}
		}
	}
}

// done checks that all streams ended where they should.
func (d *stagedDecoder) done() error {
	for n := range d.ds {
		for g := range d.ds[n] {
			if len(d.parts.refined[n][g].b) > 0 && !d.ds[n][g].done() {
				return d.ends(n, g)
			}
		}
	}
	return nil
}

// coders returns the coders of the stages, the finest first. Each of the others has steps twice as
// coarse as the one before.
func (c *Codec) coders(stages int) []*coder {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.staged) < stages {
		x := c.c
		if n := len(c.staged); n == 0 {
			x.refined = newRefineTables(x.Tables, &x.recon, nil)
		} else {
			finer := c.staged[n-1]
			x = newCoder(finer.Tables.coarser(), c.encode)
			x.refined = newRefineTables(x.Tables, nil, finer.refined)
		}
		c.staged = append(c.staged, x)
	}
	return c.staged[:stages]
}
