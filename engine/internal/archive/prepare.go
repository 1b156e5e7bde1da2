// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"
)

// Segment holds the rows of one layer and segment, before coding and after.
type Segment struct {
	Layer int     // the model's number
	First int64   // position of the first token
	Pos   []int64 // [tokens], ascending
	// Rows is [heads*sides][tokens*dim]: K and V of head 0, of head 1, and so on.
	Rows [][]float32
	Dims []int // per side
	// Class is [heads][tokens], the class of each token's step.
	Class [][]uint8
	// Chunks is the number of stages of the levels, 0 or 1 for one. Each after the first halves the
	// step, and Truncate can drop it.
	Chunks int
	// Parts is the number of parts that the tokens of a stage are divided into, 0 or 1 for one. More
	// parts make more streams.
	Parts int
	// Step8 is [heads*sides], what is added to the steps of each lane.
	Step8 []int

	bare []bool // [heads*sides]: nothing is taken off the rows
}

// Prepared is a segment as components, ready to be quantized at any step.
type Prepared struct {
	seg   *Segment
	ts    []*Transform // [lanes]
	y     [][]float32  // [lanes][tokens*dim]
	told               // where nothing is predicted
	steps []stepRange  // [lanes]

	constants [][]byte // [lanes], of K, as they are stored; nil for a lane that has none
}

// stepRange bounds the steps of a lane, in eighths of an octave. Within it, whatever the classes of
// tokens add, coefficients stay below maxMagnitude and steps are finite.
type stepRange struct{ finest, coarsest int }

// MostStep8 bounds steps, so that they are finite with all that is added to them.
const MostStep8 = 980

// step returns the step of lane i where that of the file is step8.
func (p *Prepared) step(i, step8 int) int {
	r := p.steps[i]
	return min(max(p.seg.Step8[i]+step8, r.finest), r.coarsest)
}

// Rows returns the rows of a lane.
func (p *Prepared) Rows() int { return len(p.seg.Pos) }

// Energy returns the mean square of the values of lane i about their means, in the metric of its
// transform. It is computed from the deviations of the components.
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

// Shift adds units, in eighths of an octave, to the steps of the lanes in total. Lanes differ by one
// at most; at decides which get one more.
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

// Prepare projects a segment. It turns the segment's rows into components in place; Prepared uses
// them.
//
// Errors: quant.ErrShape; *RangeError for rows beyond what steps can code.
func (c *Codec) Prepare(seg *Segment) (*Prepared, error) {
	sides := len(seg.Dims)
	ts, err := c.layer(seg.Layer, len(seg.Rows)/sides, seg.Dims)
	if err != nil {
		return nil, err
	}
	p := &Prepared{seg: seg, ts: ts, constants: make([][]byte, len(seg.Rows))}
	p.predicted, seg.bare = make([]bool, len(seg.Rows)), make([]bool, len(seg.Rows))
	turns := c.turns.Of(seg.Layer)
	sin, cos := turns.angles(seg.Pos)
	for i, rows := range seg.Rows {
		t := ts[i]
		size := rowSizes(rows, t.Dim)
		if err := checkRange(i, size); err != nil {
			return nil, err
		}
		seg.bare[i] = t.foreign(size)
		if sides == 2 && i%2 == 0 {
			if p.constants[i] = turns.rope.undo(rows, t.mean(seg.bare[i]), sin, cos); p.constants[i] != nil {
				seg.bare[i] = t.foreign(rowSizes(rows, t.Dim))
			}
		}
		t.project(rows, t.mean(seg.bare[i]))
		size = rowSizes(rows, t.Dim)
		if err := checkSmall(i, size); err != nil {
			return nil, err
		}
		up := raise(size)
		p.y, p.up = append(p.y, rows), append(p.up, up)
		a := adapt(t, rows, size, up)
		p.std8, p.delta, p.shift = append(p.std8, a.std8), append(p.delta, a.delta), append(p.shift, a.shift)
		p.steps = append(p.steps, c.stepRange(a.most8))
	}
	return p, nil
}

// stepRange returns the finest and the coarsest step that rows may have. No component of them is larger than
// 2^(most8/8).
func (c *Codec) stepRange(most8 int) stepRange {
	finer, coarser := 0, 0 // that a class of tokens makes a step
	for _, s := range c.Class8 {
		finer, coarser = max(finer, -int(s)), max(coarser, int(s))
	}
	limit := MostStep8 - max(finer, coarser)
	return stepRange{finest: min(max(most8+finer-8*27, -limit), limit), coarsest: limit}
}

// adapted holds the deviations of a lane in a segment.
type adapted struct {
	std8  []int16
	delta []uint8 // symbols: std8 against those of the transform and shift
	shift int
	most8 int // 8*log2 of what no component is above, the steps of its row taken as those of the others
}

// adapt finds the deviations of the components of a segment. It leaves out rows of coarser steps.
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

// laneShift returns by how many quarter octaves all deviations of a lane differ from those of the
// transform, 0 if symbols alone can tell them.
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

// split divides a step of 2^(s/8) into a power that records hold and the factor of the file.
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
func (c *Codec) lane(seg *Segment, i int, of *told, step8 int) (*lane, []float32) {
	n, sides := len(seg.Pos), len(seg.Dims)
	l := &lane{rows: n, dim: seg.Dims[i%sides], std8: of.std8[i], step8: make([]int16, n)}
	steps := make([]float32, n)
	var class [NumTokenClasses]float32
	for k, o := range c.Class8 {
		class[k] = step(c.Fine, step8+int(o))
	}
	for t, k := range seg.Class[i/sides] {
		l.step8[t] = int16(step8 + int(c.Class8[k]))
		steps[t] = class[k]
	}
	for t, u := range of.up[i] {
		if u > 0 {
			steps[t] = step(c.Fine, min(int(l.step8[t])+8*int(u), mostRowStep8))
			l.step8[t] -= 8 * outlierKeep // in its steps the row is so much longer than others
		}
	}
	return l, steps
}

// mostRowStep8 bounds the steps of rows of coarser steps, so that they are finite.
const mostRowStep8 = 1000

// check returns the transforms of a layer for rows of these dims.
func (c *Codec) layer(number, heads int, dims []int) ([]*Transform, error) {
	ts := c.Set.Find(number)
	if ts == nil {
		return nil, shapef("layer %d has no transforms: the profile is of another model", number)
	}
	if heads != c.Set.Heads || len(dims) != c.Set.Sides {
		return nil, shapef("%d heads and %d sides, the transforms are of %d and %d", heads, len(dims),
			c.Set.Heads, c.Set.Sides)
	}
	for i, t := range ts {
		if d := dims[i%len(dims)]; d != t.Dim {
			return nil, shapef("rows of %d values, the transforms are of %d", d, t.Dim)
		}
	}
	if len(dims) == 2 { // of K and V
		if err := c.Ropes.check(number, dims[0]); err != nil {
			return nil, err
		}
	}
	return slices.Clone(ts), nil
}
