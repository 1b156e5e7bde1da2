// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"slices"
	"sync"

	"github.com/kvist-project/kvist/engine/internal/archive/internal/axpy"
)

// Predictor tells the components of a lane from those that were decoded before it in the record: heads of a layer
// see the same tokens, and V of a head is close to a function of its K. What is coded is what it does not tell.
//
// The context of a lane are the components of all lanes before it in the order of Lanes, as they come out of
// decoding. So the encoder decodes as it goes along, and no error adds up.
type Predictor struct {
	Dim     int
	Context int     // components of the lanes before
	Std8    []int16 // [dim], 8*log2 of the deviation of what is left
	// Component j is told by the sum over i, ascending, of Scale[i] * Weights[i][j] times component i of the context,
	// both products rounded to float32.
	Scale   []float32 // [context]
	Weights []int8    // [context, dim]

	once   sync.Once
	matrix []float32 // [context, dim], made when asked for
}

// Lanes returns the order in which the lanes of a record are coded where some are predicted: K of all heads, then
// V. A lane is head*sides + side.
func Lanes(heads, sides int) []int {
	order := make([]int, 0, heads*sides)
	for side := range sides {
		for h := range heads {
			order = append(order, h*sides+side)
		}
	}
	return order
}

func (p *Predictor) prepare() {
	p.once.Do(func() {
		p.matrix = make([]float32, len(p.Weights))
		for i, s := range p.Scale {
			for j := range p.Dim {
				p.matrix[i*p.Dim+j] = s * float32(p.Weights[i*p.Dim+j])
			}
		}
	})
}

// told is what a record tells of its lanes besides their streams.
type told struct {
	std8      [][]int16 // [lanes][dim]
	delta     [][]uint8 // [lanes][dim], symbols of the side stream
	shift     []int     // [lanes], what all deviations of a lane add, in quarter octaves
	up        [][]uint8 // [lanes], nil or [tokens]: octaves by which the steps of rows are coarser
	predicted []bool    // [lanes]
}

func (t *told) clone() *told {
	return &told{slices.Clone(t.std8), slices.Clone(t.delta), slices.Clone(t.shift), slices.Clone(t.up),
		slices.Clone(t.predicted)}
}

// loop keeps the components that were decoded, for those that they tell of. Without predictors it only gives the
// order of lanes.
type loop struct {
	of      []*Predictor // [lanes], nil where a lane is not predicted; all nil: no lane is
	order   []int
	at      []int // [lanes]: where its components start in a row of the context
	width   int   // of such a row
	last    int   // the place in order of the last lane that is predicted
	rows    int
	context []float32 // [rows, width]
	guess   []float32 // [rows, dim] of the lane at work
}

// newLoop returns the loop of a segment's lanes; predictors nil for none. It goes back to the pool that it is from.
func newLoop(pool *sync.Pool, seg *Segment, predictors []*Predictor) *loop {
	sides := len(seg.Dims)
	x, _ := pool.Get().(*loop)
	if x == nil {
		x = new(loop)
	}
	*x = loop{of: predictors, order: Lanes(len(seg.Rows)/sides, sides), at: make([]int, len(seg.Rows)), last: -1,
		rows: len(seg.Pos), context: x.context, guess: x.guess}
	if predictors == nil {
		for i := range x.order {
			x.order[i] = i
		}
		return x
	}
	for place, i := range x.order {
		x.at[i] = x.width
		x.width += seg.Dims[i%sides]
		if predictors[i] != nil {
			x.last = place
		}
	}
	x.context = slices.Grow(x.context[:0], x.rows*x.width)[:x.rows*x.width]
	return x
}

// predict returns what the context says of a lane, until it is asked of the next.
func (x *loop) predict(i int) []float32 {
	p := x.of[i]
	d := p.Dim
	x.guess = slices.Grow(x.guess[:0], x.rows*d)[:x.rows*d]
	clear(x.guess)
	row := func(r int) (out, of []float32) {
		return x.guess[r*d : (r+1)*d], x.context[r*x.width : r*x.width+x.at[i]]
	}
	for r := 0; r < x.rows; r += 2 {
		y0, c0 := row(r)
		if r+1 == x.rows {
			axpy.Accumulate(y0, p.matrix, c0)
			break
		}
		y1, c1 := row(r + 1)
		axpy.AccumulatePair(y0, y1, p.matrix, c0, c1)
	}
	return x.guess
}

// add takes in the decoded components of the lane at a place of the order, if some lane behind it is predicted.
// Rows of coarser steps are so much larger than others that they would tell wrong: they count as zeros.
func (x *loop) add(place int, y []float32, up []uint8) {
	if place >= x.last {
		return
	}
	i := x.order[place]
	d := len(y) / max(1, x.rows)
	for r := range x.rows {
		to := x.context[r*x.width+x.at[i]:][:d]
		if copy(to, y[r*d:(r+1)*d]); up != nil && up[r] > 0 {
			clear(to)
		}
	}
}

// follow sets rows of components to what was decoded, in steps, times the steps of the rows, plus what was guessed.
func follow(y, steps, guess []float32) {
	if len(steps) == 0 {
		return
	}
	d := len(y) / len(steps)
	for r, f := range steps {
		row := y[r*d : (r+1)*d]
		for j := range row {
			row[j] = float32(row[j] * f)
		}
	}
	for j, g := range guess {
		y[j] += g
	}
}

// closer closes the loop of an encoder.
type closer struct {
	*loop
	c     *Codec
	p     *Prepared
	told  *told
	step8 int
	left  []float32 // what is not predicted of the lane at work
	back  []float32 // and what it decodes to
	guess []float32 // nil for a lane that is not predicted
}

// newCloser returns the loop of an encoder at a step. Its own loop goes back to the codec's pool.
func newCloser(c *Codec, p *Prepared, step8 int) *closer {
	x := &closer{c: c, p: p, told: &p.told, step8: step8}
	var predictors []*Predictor
	if c.Predict && p.seg.Chunks <= 1 {
		predictors = c.Set.predictors(p.seg.Layer)
	}
	if x.loop = newLoop(&c.loops, p.seg, predictors); predictors != nil {
		x.told = p.told.clone()
	}
	return x
}

// lane returns what is to be coded of lane i. It is predicted where that takes fewer bits.
func (x *closer) lane(i int) (l *lane, y, steps []float32) {
	p, step8 := x.p, x.p.step(i, x.step8)
	y, x.guess = p.y[i], nil
	if x.of != nil && x.of[i] != nil {
		guess := x.predict(i)
		x.left = slices.Grow(x.left[:0], len(y))[:len(y)]
		for j, v := range y {
			x.left[j] = v - guess[j]
		}
		t := &Transform{Dim: x.of[i].Dim, Std8: x.of[i].Std8}
		size := rowSizes(x.left, t.Dim)
		up := raise(size)
		a := adapt(t, x.left, size, up)
		// To tell other deviations takes about a bit for each component.
		saved := savedBits(p.told.std8[i], a.std8, step8) * float64(p.Rows())
		if x.c.stepRange(a.most8).finest <= step8 && saved > float64(t.Dim) {
			y, x.guess = x.left, guess
			x.told.std8[i], x.told.delta[i], x.told.shift[i], x.told.up[i] = a.std8, a.delta, a.shift, up
			x.told.predicted[i] = true
		}
	}
	l, steps = x.c.lane(p.seg, i, x.told, step8)
	return l, y, steps
}

// decoded takes in lane i of place, of which levels hold the symbols.
func (x *closer) decoded(place int, levels *levels, q *rowQuantizer, l *lane, steps []float32) {
	if place >= x.last {
		return
	}
	x.back = levels.values(q, x.back, l)
	follow(x.back, steps, x.guess)
	x.add(place, x.back, x.told.up[x.order[place]])
}

// savedBits is about how many bits of a row components of deviations b take less than those of a, at a step.
func savedBits(a, b []int16, step8 int) (bits float64) {
	// A sixth of a squared step is about the error at the rates of archives.
	const noise = -10 // 4*log2 of it, in eighths of an octave
	floor := math.Exp2(float64(step8)/4 + noise/4.)
	for i := range a {
		bits += math.Log2((math.Exp2(float64(a[i])/4) + floor) / (math.Exp2(float64(b[i])/4) + floor))
	}
	return bits / 2
}

// appendPredicted appends what stands before a payload where some lane is predicted: u8 3, u8 0, and a bit for each
// lane, the lowest of the first byte for lane 0.
func appendPredicted(dst []byte, predicted []bool) []byte {
	if !slices.Contains(predicted, true) {
		return dst
	}
	dst = append(dst, modePredicted, 0)
	at := len(dst)
	dst = append(dst, make([]byte, (len(predicted)+7)/8)...)
	for i, p := range predicted {
		dst[at+i/8] |= byte(b2u(p)) << (i % 8)
	}
	return dst
}

// parsePredicted reads what appendPredicted wrote and returns how many bytes that is, 0 where it wrote nothing.
//
// Errors: *CorruptError.
func parsePredicted(b []byte, lanes int) (predicted []bool, n int, err error) {
	if len(b) == 0 || b[0] != modePredicted {
		return nil, 0, nil
	}
	if n = 2 + (lanes+7)/8; len(b) < n || b[1] != 0 {
		return nil, 0, corrupt("payload", -1, -1, 1, "%d bytes for which of %d lanes are predicted", len(b), lanes)
	}
	predicted = make([]bool, 8*(n-2))
	for i := range predicted {
		predicted[i] = b[2+i/8]>>(i%8)&1 == 1
	}
	if slices.Contains(predicted[lanes:], true) || !slices.Contains(predicted, true) {
		return nil, 0, corrupt("payload", -1, -1, 2, "lanes %v of %d are predicted", predicted, lanes)
	}
	return predicted[:lanes], n, nil
}
