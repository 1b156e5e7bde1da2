// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

func ropeLayout(v uint64) quant.RopeLayout { return quant.RopeLayout(v) }

// Segment is the rows of one layer and segment, as they go in and come out.
type Segment struct {
	Layer int     // the model's number
	First int64   // position that the first token has where nothing else is said
	Pos   []int64 // [tokens], ascending
	// Rows is [heads*sides][tokens*dim]: K and V of head 0, of head 1, and so on.
	Rows [][]float32
	Dims []int // per side
	// Class is [heads][tokens], the class of each token's step.
	Class [][]uint8
	// Chunks is in how many stages the levels are told, 0 or 1 for one: each behind the first halves the
	// step, and can be dropped later (Truncate).
	Chunks int
	// Parts is in how many parts of the tokens a stage is cut, 0 or 1 for one: more make more streams.
	Parts int
	// Step8 is [heads*sides], what a lane adds to its steps.
	Step8 []int

	up   [][]uint8 // [heads*sides], nil or [tokens]: octaves by which the steps of rows are coarser
	bare []bool    // [heads*sides]: nothing is taken off the rows
}

// Prepared is a segment as components, ready to be quantized at any step.
type Prepared struct {
	seg   *Segment
	ts    []*Transform // [lanes]
	y     [][]float32  // [lanes][tokens*dim]
	std8  [][]int16    // [lanes][dim], as the record will say
	delta [][]uint8    // [lanes][dim], symbols of the side stream
	shift []int        // [lanes], what all deviations of a lane add, in quarter octaves
	steps []stepRange  // [lanes]
}

// stepRange holds the steps of a lane, in eighths of an octave: at the finest, with what classes of tokens add,
// coefficients stay below maxMagnitude, and all steps are finite numbers.
type stepRange struct{ finest, coarsest int }

// MostStep8 bounds steps, so that with all that is added to them they are finite numbers.
const MostStep8 = 980

// step returns the step of lane i where that of the file is step8.
func (p *Prepared) step(i, step8 int) int {
	r := p.steps[i]
	return min(max(p.seg.Step8[i]+step8, r.finest), r.coarsest)
}

// Rows returns the rows of a lane.
func (p *Prepared) Rows() int { return len(p.seg.Pos) }

// Energy returns the mean square of the values of lane i about their means, as deviations of its components
// tell it, in the metric of its transform.
func (p *Prepared) Energy(i int) float64 {
	var sum float64
	for _, s := range p.std8[i] {
		if s > minStd8 {
			sum += math.Exp2(float64(s) / 4)
		}
	}
	return sum / float64(len(p.std8[i]))
}

// Expected is the Energy that the transform of lane i was made for.
func (p *Prepared) Expected(i int) float64 {
	var sum float64
	for _, s := range p.ts[i].Std8 {
		if s > minStd8 {
			sum += math.Exp2(float64(s) / 4)
		}
	}
	return sum / float64(len(p.ts[i].Std8))
}

// Shift adds units to the steps of the lanes, in eighths of an octave and in all: lanes differ by
// one at most. Which get more turns with at.
func (p *Prepared) Shift(units, at int) {
	if units == 0 {
		return
	}
	n := len(p.y)
	each := units / n
	if units%n < 0 {
		each--
	}
	p.seg.Step8 = slices.Clone(p.seg.Step8)
	for i := range p.seg.Step8 {
		p.seg.Step8[i] += each
		if (i+at)%n < units-each*n {
			p.seg.Step8[i]++
		}
	}
}

// What the side stream tells of deviations, in quarter octaves.
const (
	deltaZero   = 7            // the symbol of a deviation that is the one expected
	deltaEscape = sideSyms - 1 // the symbol of a deviation that is told as it is
	deltaBits   = 11
	shiftBits   = 12
	stepZero    = 2048
)

// Prepare projects a segment. Its rows become the components, which what is prepared goes on to use.
//
// Errors: quant.ErrShape; *RangeError for rows beyond what steps can code.
func (c *Codec) Prepare(seg *Segment) (*Prepared, error) {
	sides := len(seg.Dims)
	ts, err := c.layer(seg.Layer, len(seg.Rows)/sides, seg.Dims)
	if err != nil {
		return nil, err
	}
	p := &Prepared{seg: seg, ts: ts}
	seg.up, seg.bare = nil, make([]bool, len(seg.Rows))
	sin, cos := c.turns.angles(seg.Pos)
	for i, rows := range seg.Rows {
		t := ts[i]
		size := rowSizes(rows, t.Dim)
		if err := checkRange(i, size); err != nil {
			return nil, err
		}
		seg.bare[i] = t.foreign(size)
		if sides == 2 && i%2 == 0 {
			c.Rope.apply(rows, t.Dim, sin, cos, -1)
		}
		t.project(rows, t.mean(seg.bare[i]))
		size = rowSizes(rows, t.Dim)
		if err := checkSmall(i, size); err != nil {
			return nil, err
		}
		up := raise(size)
		p.y, seg.up = append(p.y, rows), append(seg.up, up)
		a := adapt(t, rows, size, up)
		p.std8, p.delta, p.shift = append(p.std8, a.std8), append(p.delta, a.delta), append(p.shift, a.shift)
		p.steps = append(p.steps, c.stepRange(a.most8))
	}
	return p, nil
}

// stepRange returns the steps for components none of which is above 2^(most8/8).
func (c *Codec) stepRange(most8 int) stepRange {
	finer, coarser := 0, 0 // that a class of tokens makes a step
	for _, s := range c.Class8 {
		finer, coarser = max(finer, -int(s)), max(coarser, int(s))
	}
	limit := MostStep8 - max(finer, coarser)
	return stepRange{finest: min(max(most8+finer-8*27, -limit), limit), coarsest: limit}
}

// adapted is what a segment tells of the deviations of a lane.
type adapted struct {
	std8  []int16
	delta []uint8 // symbols: std8 against those of the transform and shift
	shift int
	most8 int // 8*log2 of what no component is above, the steps of its row taken as those of the others
}

// adapt finds the deviations of the components of a segment. Rows whose steps are coarser take no part.
func adapt(t *Transform, y, size []float32, up []uint8) adapted {
	a := adapted{std8: make([]int16, t.Dim), delta: make([]uint8, t.Dim), most8: -MostStep8}
	if up != nil {
		for r, u := range up {
			if u > 0 {
				a.most8 = max(a.most8, 8*(octave(size[r])-int(u)))
			}
		}
		y = withoutRaised(y, t.Dim, up)
	}
	sum := make([]float64, t.Dim)
	for r := 0; r < len(y); r += 4 * t.Dim {
		if len(y)-r >= 4*t.Dim {
			addSquares(sum, y[r:r+4*t.Dim])
			continue
		}
		for i, v := range y[r:] {
			sum[i%t.Dim] += float64(float64(v) * float64(v))
		}
	}
	have := make([]float64, t.Dim) // 8*log2 of the deviation
	for i, s := range sum {
		have[i] = math.Inf(-1)
		if s > 0 {
			a.most8 = max(a.most8, int(math.Ceil(4*math.Log2(s))))
			have[i] = 4 * math.Log2(s/float64(len(y)/t.Dim))
		}
	}
	a.shift = laneShift(t, have)
	for i, h := range have {
		d := -deltaZero
		if !math.IsInf(h, -1) {
			d = max(int(math.Round((h-float64(t.Std8[i]))/2))-a.shift, -deltaZero)
		}
		if d+deltaZero >= deltaEscape {
			a.delta[i] = deltaEscape
			a.std8[i] = int16(2 * min(max(math.Round(h/2), -1<<(deltaBits-1)), 1<<(deltaBits-1)-1))
			continue
		}
		a.delta[i] = uint8(d + deltaZero)
		a.std8[i] = t.Std8[i] + int16(2*(d+a.shift))
	}
	return a
}

// laneShift returns by how many quarter octaves all deviations of a lane are off, 0 where symbols tell
// them well.
func laneShift(t *Transform, have []float64) int {
	off := make([]float64, 0, len(have))
	beyond := 0
	for i, h := range have {
		if math.IsInf(h, -1) || t.Std8[i] == minStd8 {
			continue
		}
		d := (h - float64(t.Std8[i])) / 2
		if math.Abs(d) > deltaZero {
			beyond++
		}
		off = append(off, d)
	}
	if 2*beyond <= len(off) {
		return 0
	}
	slices.Sort(off)
	return int(min(max(math.Round(off[len(off)/2]), 1-1<<(shiftBits-1)), 1<<(shiftBits-1)-1))
}

// withoutRaised returns the rows whose steps are those of their class.
func withoutRaised(y []float32, dim int, up []uint8) []float32 {
	var kept []float32
	for r, u := range up {
		if u == 0 {
			kept = append(kept, y[r*dim:(r+1)*dim]...)
		}
	}
	return kept
}

// addSquares adds the squares of four rows to sum, row after row.
func addSquares(sum []float64, y []float32) {
	d := len(sum)
	a, b, c, e := y[:d], y[d:2*d], y[2*d:3*d], y[3*d:4*d]
	b, c, e = b[:len(a)], c[:len(a)], e[:len(a)]
	for i, v := range a {
		s := sum[i] + float64(float64(v)*float64(v))
		s += float64(float64(b[i]) * float64(b[i]))
		s += float64(float64(c[i]) * float64(c[i]))
		sum[i] = s + float64(float64(e[i])*float64(e[i]))
	}
}

// split parts a step of 2^(s/8) into a power that records hold and the factor of the file.
func split(s float64) (fine float32, s8 int) {
	s8 = int(math.Floor(s))
	fine = float32(math.Exp2((s - float64(s8)) / 8))
	return max(fine, 1), s8
}

// SetStep sets the step of the file to 2^(s/8) and returns what is left for the records: the value
// to hand to Encode and Cost.
func (p *Params) SetStep(s float64) int {
	var s8 int
	p.Fine, s8 = split(s)
	return s8
}

// lane returns lane i with its steps.
//
// Coefficients of a row of coarser steps are still 2^outlierKeep times those of other rows: their classes
// are those of a finer step.
func (c *Codec) lane(seg *Segment, i int, std8 []int16, step8 int) (*lane, []float32) {
	n, sides := len(seg.Pos), len(seg.Dims)
	l := &lane{rows: n, dim: seg.Dims[i%sides], std8: std8, step8: make([]int16, n)}
	steps := make([]float32, n)
	var class [NumTokenClasses]float32
	for k, o := range c.Class8 {
		class[k] = step(c.Fine, step8+int(o))
	}
	for t, k := range seg.Class[i/sides] {
		l.step8[t] = int16(step8 + int(c.Class8[k]))
		steps[t] = class[k]
	}
	if seg.up == nil {
		return l, steps
	}
	for t, u := range seg.up[i] {
		if u > 0 {
			steps[t] = step(c.Fine, min(int(l.step8[t])+8*int(u), mostRowStep8))
			l.step8[t] -= 8 * outlierKeep // in its steps the row is so much longer than others
		}
	}
	return l, steps
}

// mostRowStep8 bounds the steps of rows that are coarser than others: they are finite numbers.
const mostRowStep8 = 1000

// Effort says how levels are chosen.
type Effort struct {
	// Lambda is the squared error, in squared steps, that a bit is worth. 0 rounds to the nearest.
	Lambda float32
}

// Cost returns the bits of the lanes of a segment at a step, as the model gives them; what the
// record takes beside them is small and does not depend on the step.
func (c *Codec) Cost(p *Prepared, step8 int, e Effort) float64 {
	q := c.c.quantizer(e.Lambda)
	var sum float64
	quick := c.quick.Get().(*levels)
	defer c.quick.Put(quick)
	for i := range p.y {
		l, steps := c.lane(p.seg, i, p.std8[i], p.step(i, step8))
		quick.quantize(q, l, p.y[i], steps)
		sum += quick.bits(q)
	}
	return sum
}

// Fit collects statistics for the tables from a segment.
func (c *Codec) Fit(f *Fit, p *Prepared, step8 int, e Effort) float64 {
	q := c.c.quantizer(e.Lambda)
	q.fit = &f.f
	var sum float64
	for i := range p.y {
		l, steps := c.lane(p.seg, i, p.std8[i], p.step(i, step8))
		sum += q.encode(l, p.y[i], steps, nil)
	}
	return sum
}

// Fit is statistics for tables.
type Fit struct{ f fitter }

// Tables returns tables made of the statistics, where there are few mixed with old ones.
func (f *Fit) Tables(old *Tables) *Tables { return f.f.tables(old) }

// The first byte of a payload.
const (
	modeTransform = 0
	modeLossless  = 1
)

// MaxChunks is the most stages of a record.
const MaxChunks = 16

// Encode appends the payload of a record to dst.
//
// Layout: u8 0, u8 stages, u8 parts of the tokens, u32 length of the side stream, u16 energy of the rows,
// u16 error; u32 length and u16 worth of the base of each lane, then of each refinement, the coarsest
// first, and each stream; the side stream, the bases, the refinements.
func (c *Codec) Encode(dst []byte, p *Prepared, step8 int, e Effort) []byte {
	quick := c.quick.Get().(*levels)
	defer c.quick.Put(quick)
	if p.seg.Chunks > 1 {
		return c.encodeStaged(dst, p, step8, e, quick)
	}
	q := c.c.quantizer(e.Lambda)
	parts := &streams{chunks: 1, parts: 1, side: c.encodeSide(nil, p, step8)}
	var energy, left float64
	var room []byte
	for i := range p.y {
		l, steps := c.lane(p.seg, i, p.std8[i], p.step(i, step8))
		quick.quantize(q, l, p.y[i], steps)
		at := len(room)
		room = quick.encode(room, q, l)
		all, lost := c.energy(l, p.y[i], steps)
		energy, left = energy+all, left+lost
		parts.lanes = append(parts.lanes, stream{at: at, worth: newWorth(all - lost)})
	}
	for i := range parts.lanes {
		end := len(room)
		if i+1 < len(parts.lanes) {
			end = parts.lanes[i+1].at
		}
		parts.lanes[i].b = room[parts.lanes[i].at:end]
	}
	parts.energy, parts.err = newWorth(energy), newWorth(left)
	return parts.append(dst)
}

// energy returns that of the rows of a lane, in squared steps, and what the tables expect coding to leave
// of it.
func (c *Codec) energy(l *lane, y, steps []float32) (all, lost float64) {
	known := map[int16]float64{}
	for t, f := range steps {
		var sum [4]float32
		row, inv := y[t*l.dim:(t+1)*l.dim], 1/f
		for len(row) >= 4 {
			a, b, c, d := row[0]*inv, row[1]*inv, row[2]*inv, row[3]*inv
			sum[0], sum[1], sum[2], sum[3] = sum[0]+a*a, sum[1]+b*b, sum[2]+c*c, sum[3]+d*d
			row = row[4:]
		}
		for _, v := range row {
			sum[0] += v * inv * v * inv
		}
		s := float64(sum[0]) + float64(sum[1]) + float64(sum[2]) + float64(sum[3])
		left, ok := known[l.step8[t]]
		if !ok {
			left = c.expected(l, l.step8[t], 0)
			known[l.step8[t]] = left
		}
		all, lost = all+s, lost+min(left, s)
	}
	return all, lost
}

// sideModels are the models of the side stream of a record.
type sideModels struct {
	delta [2]sideModel
	class [sideSyms]sideModel
	gap   sideModel
}

func newSideModels() *sideModels {
	m := &sideModels{gap: newSideModel()}
	for i := range m.delta {
		m.delta[i] = newSideModel()
	}
	for i := range m.class {
		m.class[i] = newSideModel()
	}
	return m
}

// number codes v in hexadecimal digits from the lowest, a flag before each.
func (e *sideEncoder) number(m *sideModel, v uint64) {
	for ; v > 0; v >>= 4 {
		e.raw(1, 1)
		e.put(m, int(v&15))
	}
	e.raw(0, 1)
}

// number reads what number of sideEncoder codes; false for more than a position can be.
func (d *sideDecoder) number(m *sideModel) (v uint64, ok bool) {
	for n := 0; d.raw(1) == 1; n += 4 {
		if n > 40 {
			return 0, false
		}
		v |= uint64(d.get(m)) << n
	}
	return v, true
}

const raiseBits = 8

// raised codes which rows have coarser steps, and by how many octaves.
func (e *sideEncoder) raised(m *sideModels, up []uint8) {
	e.raw(b2u(up != nil), 1)
	if up == nil {
		return
	}
	n := 0
	for _, u := range up {
		n += int(b2u(u > 0))
	}
	e.number(&m.gap, uint64(n))
	last := -1
	for r, u := range up {
		if u > 0 {
			e.number(&m.gap, uint64(r-last-1))
			e.raw(uint32(u), raiseBits)
			last = r
		}
	}
}

// raised reads what raised of sideEncoder codes.
func (d *sideDecoder) raised(m *sideModels, rows int) (up []uint8, ok bool) {
	if d.raw(1) == 0 {
		return nil, true
	}
	n, ok := d.number(&m.gap)
	if !ok || n < 1 || n > uint64(rows) {
		return nil, false
	}
	up = make([]uint8, rows)
	at := uint64(0)
	for range n {
		gap, ok := d.number(&m.gap)
		if at += gap; !ok || at >= uint64(rows) {
			return nil, false
		}
		if up[at] = uint8(d.raw(raiseBits)); up[at] == 0 {
			return nil, false
		}
		at++
	}
	return up, true
}

// The side stream: whether positions count up by one; if not, each gap; for every lane its step, the
// deviations of its components and the rows of coarser steps; for every head the class of every token.
func (c *Codec) encodeSide(dst []byte, p *Prepared, step8 int) []byte {
	var e sideEncoder
	m := newSideModels()
	seg := p.seg
	gaps := false
	for t, pos := range seg.Pos {
		gaps = gaps || pos != seg.First+int64(t)
	}
	e.raw(b2u(gaps), 1)
	if gaps {
		last := seg.First - 1
		for _, pos := range seg.Pos {
			v := uint64(pos - last - 1)
			e.number(&m.gap, v)
			last = pos
		}
	}
	for i := range p.y {
		e.raw(uint32(p.step(i, step8)+stepZero), 12)
		e.raw(b2u(seg.bare[i]), 1)
		if e.raw(b2u(p.shift[i] != 0), 1); p.shift[i] != 0 {
			e.raw(uint32(p.shift[i]+1<<(shiftBits-1)), shiftBits)
		}
		for j, d := range p.delta[i] {
			if e.put(&m.delta[i%len(seg.Dims)], int(d)); d == deltaEscape {
				e.raw(uint32(int(p.std8[i][j])/2+1<<(deltaBits-1)), deltaBits)
			}
		}
		e.raised(m, seg.up[i])
	}
	for _, class := range seg.Class {
		last := uint8(0)
		for _, k := range class {
			e.put(&m.class[last], int(k))
			last = k
		}
	}
	return e.finish(dst)
}

// Decode reads the payload of a record into seg, of which Layer, First, Dims and the lengths of Pos
// and Rows are given. Rows come out as they were, the embedding in place. noise, unless nil, is
// [heads*sides][tokens] and gets the expected squared error of each row in the metric of its
// transform, times the transform's gain.
//
// Errors: *CorruptError; quant.ErrShape where the transforms do not fit.
func (c *Codec) Decode(seg *Segment, b []byte, noise [][]float32) error {
	sides, lanes, n := len(seg.Dims), len(seg.Rows), len(seg.Pos)
	ts, err := c.layer(seg.Layer, lanes/sides, seg.Dims)
	if err != nil {
		return err
	}
	parts, err := parse(b, lanes)
	if err != nil {
		return err
	}
	seg.Chunks, seg.Parts = parts.chunks, parts.parts
	std8, err := c.decodeSide(seg, ts, parts.side)
	if err != nil {
		return err
	}
	sin, cos := c.turns.angles(seg.Pos)
	work := c.work.Get().(*[]float32)
	defer c.work.Put(work)
	staged, missing := c.newStagedDecoder(parts), parts.missing()
	for i := range lanes {
		t := ts[i]
		l, steps := c.lane(seg, i, std8[i], seg.Step8[i])
		*work = slices.Grow((*work)[:0], n*t.Dim)
		y := (*work)[:n*t.Dim]
		var of []uint8
		if parts.chunks > 1 {
			of = c.streamsOf(seg.Class[i/sides], parts.parts)
		}
		if parts.chunks > 1 {
			err = staged.lane(i, l, y, of)
		} else if !c.c.decodeLane(l, parts.lanes[i].b, y) {
			err = corrupt("lane", i/sides, i%sides, parts.lanes[i].at, "the stream does not end where it should")
		}
		if err != nil {
			return err
		}
		for r, f := range steps {
			for j := range y[r*t.Dim : (r+1)*t.Dim] {
				y[r*t.Dim+j] *= f
			}
		}
		t.restore(seg.Rows[i], y[:n*t.Dim], t.mean(seg.bare[i]))
		if sides == 2 && i%2 == 0 {
			c.Rope.apply(seg.Rows[i], t.Dim, sin, cos, 1)
		}
		if noise != nil && noise[i] != nil {
			c.noise(noise[i], l, steps, t.Gain, func(t int) int {
				switch {
				case len(parts.lanes[i].b) == 0:
					return nothingLeft
				case of == nil:
					return 0
				}
				return missing[of[t]]
			})
		}
	}
	return staged.done()
}

// decodeSide reads the side stream into seg.
func (c *Codec) decodeSide(seg *Segment, ts []*Transform, b []byte) ([][]int16, error) {
	d := sideDecoder{ransDecoder: newRansDecoder(b)}
	m := newSideModels()
	gaps := d.raw(1) == 1
	last := seg.First - 1
	for t := range seg.Pos {
		if !gaps {
			seg.Pos[t] = seg.First + int64(t)
			continue
		}
		v, ok := d.number(&m.gap)
		if !ok {
			return nil, corrupt("side stream", -1, -1, d.pos, "a gap of more than 40 bits")
		}
		last += 1 + int64(v)
		if last > quant.MaxTokens {
			return nil, corrupt("side stream", -1, -1, d.pos, "position %d", last)
		}
		seg.Pos[t] = last
	}
	std8 := make([][]int16, len(seg.Rows))
	seg.Step8, seg.up = make([]int, len(seg.Rows)), make([][]uint8, len(seg.Rows))
	seg.bare = make([]bool, len(seg.Rows))
	for i := range seg.Rows {
		if seg.Step8[i] = int(d.raw(12)) - stepZero; max(seg.Step8[i], -seg.Step8[i]) > MostStep8 {
			return nil, corrupt("side stream", i/len(seg.Dims), i%len(seg.Dims), d.pos, "a step of 2^(%d/8)", seg.Step8[i])
		}
		seg.bare[i] = d.raw(1) == 1
		shift := 0
		if d.raw(1) == 1 {
			shift = int(d.raw(shiftBits)) - 1<<(shiftBits-1)
		}
		std8[i] = make([]int16, ts[i].Dim)
		for j := range std8[i] {
			sym := d.get(&m.delta[i%len(seg.Dims)])
			if sym == deltaEscape {
				std8[i][j] = int16(2 * (int(d.raw(deltaBits)) - 1<<(deltaBits-1)))
				continue
			}
			std8[i][j] = ts[i].Std8[j] + int16(2*(sym-deltaZero+shift))
		}
		var ok bool
		if seg.up[i], ok = d.raised(m, len(seg.Pos)); !ok {
			return nil, corrupt("side stream", i/len(seg.Dims), i%len(seg.Dims), d.pos, "rows of coarser steps")
		}
	}
	seg.Class = make([][]uint8, len(seg.Rows)/len(seg.Dims))
	for h := range seg.Class {
		seg.Class[h] = make([]uint8, len(seg.Pos))
		last := uint8(0)
		for t := range seg.Class[h] {
			last = uint8(d.get(&m.class[last]))
			seg.Class[h][t] = last
		}
	}
	if !d.done() {
		return nil, corrupt("side stream", -1, -1, d.pos, "the stream does not end where it should")
	}
	return std8, nil
}

// nothingLeft refinements short, no component is coded.
const nothingLeft = 1 << 10

// noise sets out to gain times the expected squared error of each row, as the tables tell it, where token t
// is left(t) refinements short.
func (c *Codec) noise(out []float32, l *lane, steps []float32, gain float32, left func(t int) int) {
	type at struct {
		step8 int16
		left  int
	}
	known := map[at]float64{} // a lane has as many as there are classes
	for t := range out {
		s := at{l.step8[t], left(t)}
		sum, ok := known[s]
		if !ok {
			sum = c.expected(l, s.step8, s.left)
			known[s] = sum
		}
		out[t] = float32(min(float64(gain)*float64(steps[t])*float64(steps[t])*sum, math.MaxFloat32))
	}
}

// expected returns the squared error to expect of a row with a step, some refinements short, in
// squared steps.
func (c *Codec) expected(l *lane, step8 int16, left int) float64 {
	var sum float64
	for _, s := range l.std8 {
		prior := int(s) - int(step8)
		scale := prior - 8*left
		if coded(scale) {
			e := 1. / 12
			if k, shift := classOf(scale); shift == 0 {
				e = float64(c.c.Noise[k]) / 4096
			}
			sum += math.Ldexp(e, 2*left)
			continue
		}
		// The whole of a component that is not stored.
		dev := math.Ldexp(float64(eighths[prior&7]), prior>>3)
		sum += dev * dev
	}
	return sum
}

// LaneSizes returns the bytes that each lane of a payload takes, [heads*sides]. Refinements, whose streams
// are of all lanes, count as the bases do.
//
// Errors: *CorruptError.
func LaneSizes(payload []byte, lanes int) ([]int64, error) {
	sizes := make([]int64, lanes)
	if IsLossless(payload) {
		l, err := parseLossless(payload, lanes)
		for i := range l {
			sizes[i] = int64(len(l[i]))
		}
		return sizes, err
	}
	p, err := parse(payload, lanes)
	if err != nil {
		return nil, err
	}
	for i, l := range p.lanes {
		sizes[i] = int64(len(l.b))
	}
	p.spread(sizes)
	return sizes, nil
}
