// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant/frame"
)

const tileRows = attend.TileRows

// scorer unpacks tiles of blocks and multiplies them with some queries. Attend and Relevance share
// it.
type scorer struct {
	p  *prepared
	qs []int32 // the current queries, indices into the batch
	// unit is that of all current queries, or nil: each query is a unit of its own.
	unit *unit
	// first is, per current query, the index of its first head in the arrays of prepared, in the
	// variant of angles and metric.
	first    []int
	has      bool // a variant was entered
	angles   *angles
	metric   *frame.Metric
	one, two []float32 // [head_dim]

	// Tables of the current variant, for lists of at least tableRows rows.
	canLookUp, hasTables bool
	tables               []float32

	// The current block.
	blk    blockView
	layout attend.Layout
	vecs   []float32 // the queries in the basis of the block
	bytes  bool      // K is unpacked to bytes: the queries are in digits
	direct bool      // the rows are expanded while they are multiplied
	lookUp bool      // inner products with K come from tables
	// shift is, per current head, what the mean of K adds to a score before it is capped; mean is
	// the mean that it belongs to, zero for none.
	shift []float32
	mean  args.Place
	// Means that were multiplied together: rest is the list after the current block.
	rest     []int32
	ahead    []args.Place
	nextMean int
	means    []float32 // [tileRows, padK]
	meanDots []float32 // [heads, tileRows]
	shifts   bool      // the block has a mean of K
	high     []float32 // [heads]: the largest scores before lower
	low      bool      // lower was called, and lift was not

	// The current tile.
	kt       []float32 // [tileRows, padK]
	kb       []byte    // [tileRows, head_dim], for tiles of bytes
	unpackT  attend.Scratch
	r0, n    int
	seen     []uint32 // per current query: bit r is set if it sees row r
	terms    attend.Terms
	hasAdd   bool // whether terms.Add is not all zero, and so on
	hasNoise bool
	mul      [tileRows]float32 // with Softcap: row scale times unit times Queries.Scale
	pos      [tileRows]int64

	// Per current head.
	heads attend.Heads
}

var negInf = math.Inf(-1)

func grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// reset switches to other queries: those of a unit, or with nil some that are units of their own.
func (s *scorer) reset(p *prepared, v *view, u *unit, qs []int32) {
	s.p, s.unit, s.qs, s.has = p, u, qs, false
	s.blk = blockView{view: v}
	s.mean, s.canLookUp, s.hasTables, s.low = args.Place{}, false, false, false
	s.kt = grow(s.kt, tileRows*p.padK)
	if p.hasCut {
		s.kb = grow(s.kb, tileRows*p.HeadDim)
	}
	s.seen, s.first = grow(s.seen, len(qs)), grow(s.first, len(qs))
	h := len(qs) * p.Group
	s.heads.Dots, s.heads.Weights = grow(s.heads.Dots, h*tileRows), grow(s.heads.Weights, h*tileRows)
	s.heads.Energy = grow(s.heads.Energy, h)
	s.heads.Sums = grow(s.heads.Sums, h)
	s.heads.Masks = grow(s.heads.Masks, h)
	s.shift, s.meanDots = grow(s.shift, h), grow(s.meanDots, h*tileRows)
	s.ahead, s.rest = s.ahead[:0], nil
}

// block switches to a block that has been checked. It fails if the block's memory was freed.
func (s *scorer) block(e *entry, withV bool) error {
	if err := s.blk.again(e, withV); err != nil {
		return err
	}
	p, f := s.p, s.blk.form
	if !s.has || s.angles != f.Own.angles || s.metric != f.Key.Metric {
		s.enter(f)
	}
	k := &f.Own.k
	s.bytes, s.lookUp = k.cut, false
	if !s.bytes {
		s.layout, s.vecs = k.layout, p.vecs[k.rotated][k.layout]
		s.lookUp = s.canLookUp && k.lookUp
	}
	mean := s.blk.means[0]
	s.shifts = mean.Slab != 0
	if s.shifts && s.mean != mean && !s.centre(mean) {
		return errFreed()
	}
	return nil
}

// enter switches to the variant of a form.
func (s *scorer) enter(f *form) {
	p := s.p
	s.has, s.angles, s.metric, s.mean, s.hasTables = true, f.Own.angles, f.Key.Metric, args.Place{}, false
	s.ahead = s.ahead[:0]
	var v *variant
	if s.unit != nil {
		v = p.variantOf(s.unit.v0, s.unit.v1, f)
	}
	for i, q := range s.qs {
		if s.unit != nil {
			s.first[i] = v.at + i*p.Group
		} else {
			u := &p.units[q]
			s.first[i] = p.variantOf(u.v0, u.v1, f).at
		}
		copy(s.heads.Energy[i*p.Group:(i+1)*p.Group], p.energy[s.first[i]:])
	}
}

// centre computes what a mean of K adds to the scores of the current heads. It multiplies the next
// means of the list in the same variant too, because a tile of them costs little more than one. It returns
// false if the memory of one was freed.
func (s *scorer) centre(mean args.Place) bool {
	p := s.p
	s.mean = mean
	if s.nextMean >= len(s.ahead) || s.ahead[s.nextMean] != mean {
		if !s.lookAhead(mean) {
			s.mean = args.Place{}
			return false
		}
	}
	for h := range s.shift {
		s.shift[h] = s.meanDots[h*tileRows+s.nextMean] * p.Scale
	}
	s.nextMean++
	return true
}

// lookAhead multiplies a mean, and those of the blocks after the current one, with the current heads.
func (s *scorer) lookAhead(mean args.Place) bool {
	p, v := s.p, s.blk.view
	s.means = grow(s.means, tileRows*p.padK)
	s.ahead, s.nextMean = append(s.ahead[:0], mean), 0
	last, group := s.blk.form, s.blk.group
	for _, b := range s.rest {
		if len(s.ahead) == tileRows {
			break
		}
		e := v.At(int(b))
		if e.Group == group {
			continue // its variant is looked at when its turn comes
		}
		group = e.Group
		if f := v.Form(e.Form); f != last && (f.Own.angles != s.angles || f.Key.Metric != s.metric) {
			break
		}
		if m := v.Group(group).Key.MeanK; m.Slab != 0 && m != s.ahead[len(s.ahead)-1] {
			s.ahead = append(s.ahead, m)
		}
	}
	for i, m := range s.ahead {
		row := s.means[i*p.padK : (i+1)*p.padK]
		if !p.meanOf(v, m, row[:p.HeadDim]) {
			return false
		}
		clear(row[p.HeadDim:])
	}
	for i, at := range s.first {
		p.kern.Dots(s.meanDots[i*p.Group*tileRows:], p.plain[at*p.padK:], p.Group, p.plainLayout(), s.means,
			p.padK, len(s.ahead))
	}
	return true
}

// lower subtracts what the mean of K adds to the scores of the current heads from their largest
// scores, because the kernels compute scores without it; capped scores have it already. lift undoes
// it. In between, differences of scores are what they were, so neighbouring blocks with one mean
// stay low.
func (s *scorer) lower(tops []float32) {
	if s.low || !s.shifts || s.p.Softcap != 0 {
		return
	}
	s.low = true
	s.high = grow(s.high, len(tops))
	for h, t := range tops {
		s.high[h] = t
		tops[h] = t - s.shift[h]
	}
}

// leave is called before block: it lifts what was low for another mean or variant.
func (s *scorer) leave(e *entry, tops []float32) {
	if !s.low || e.Group == s.blk.group && e.Form == s.blk.kind {
		return
	}
	v := s.blk.view
	f := v.Form(e.Form)
	if s.mean != v.Group(e.Group).Key.MeanK || s.angles != f.Own.angles || s.metric != f.Key.Metric {
		s.lift(tops)
	}
}

// lift undoes lower. A largest score that did not rise gets its old bits.
func (s *scorer) lift(tops []float32) {
	if !s.low {
		return
	}
	s.low = false
	for h, t := range tops {
		if low := s.high[h] - s.shift[h]; t == low || low != low {
			tops[h] = s.high[h]
		} else {
			tops[h] = t + s.shift[h]
		}
	}
}

// tile prepares rows [r0, r0+n) of the block and reports whether any query sees any of them. If
// none does, it unpacks nothing.
func (s *scorer) tile(r0, n int) bool {
	s.n = n
	if !s.see(r0, n) {
		return false
	}
	b, p := &s.blk, s.p
	k, own := &b.form.Key, &b.form.Own
	rows, f := int(k.Rows), k.K.Format
	s.r0 = r0
	if s.lookUp {
		// nothing to unpack
	} else if s.direct = s.bytes && p.kern.Direct(f, p.HeadDim, n, len(s.qs)*p.Group); s.direct {
		// nothing to unpack
	} else if s.bytes {
		p.kern.UnpackBytes(s.kb, false, k.K, b.k, rows, p.HeadDim, r0, n, &s.unpackT)
	} else {
		p.kern.Unpack(s.kt, s.layout, k.K, b.k, rows, p.HeadDim, r0, n, &s.unpackT)
	}
	if !own.k.planes {
		p.kern.Prefetch(k.K, b.k, p.HeadDim, r0+n, min(tileRows, rows-r0-n))
	}
	p.kern.Scales(&s.terms.Mul, k.K.Scale, b.k[own.k.scales:], r0, n, own.k.unit*p.Scale)
	if own.adds {
		s.addends(r0, n)
		s.hasAdd = true
	} else if s.hasAdd {
		s.terms.Add = [tileRows]float32{}
		s.hasAdd = false
	}
	if own.noise != 0 {
		p.kern.Square(&s.terms.Noise, &s.terms.Mul, own.noise)
		s.hasNoise = true
	} else if s.hasNoise {
		s.terms.Noise = [tileRows]float32{}
		s.hasNoise = false
	}
	if p.Softcap > 0 {
		s.mul = s.terms.Mul
		for r := range s.terms.Mul {
			s.terms.Mul[r] = 1 // capped scores need no further factor
		}
	}
	return true
}

// logCounts holds the logarithms of small counts.
var logCounts = func() (t [1024]float32) {
	for i := range t {
		t[i] = float32(math.Log(float64(i)))
	}
	return t
}()

func logCount(n int) float32 {
	if n < len(logCounts) {
		return logCounts[n]
	}
	return float32(math.Log(float64(n)))
}

// addends computes log(count) + bias.
func (s *scorer) addends(r0, n int) {
	b := &s.blk
	var all float32
	if n := b.form.Key.Tokens; n > 1 {
		all = logCount(int(n))
	}
	for i := range n {
		x := all
		if b.count != nil {
			x = logCount(int(binary.LittleEndian.Uint16(b.count[2*(r0+i):])))
		}
		if b.bias != nil {
			x += math.Float32frombits(binary.LittleEndian.Uint32(b.bias[4*(r0+i):]))
		}
		s.terms.Add[i] = x
	}
}

// nextRun finds the next consecutive queries from index i on that see a row, and computes their
// inner products: heads [a, b) of the current ones. It returns the index after them. If there are
// none, a = b.
func (s *scorer) nextRun(i int) (next, a, b int) {
	for i < len(s.qs) && s.seen[i] == 0 {
		i++
	}
	if i == len(s.qs) {
		return i, 0, 0
	}
	end := i + 1
	for end < len(s.qs) && s.seen[end] != 0 && s.first[end] == s.first[end-1]+s.p.Group {
		end++
	}
	p := s.p
	for j := i; j < end; j++ {
		for h := range p.Group {
			s.heads.Masks[j*p.Group+h] = s.seen[j]
		}
	}
	from := s.first[i]
	a, b = i*p.Group, end*p.Group
	if dots := s.heads.Dots[a*tileRows:]; s.lookUp {
		s.dotTables(dots, a, b)
	} else if s.direct {
		p.kern.DotPlanes(dots, p.cut[from*p.cutBytes():], b-a, s.blk.form.Key.K.Format, s.blk.k,
			int(s.blk.form.Key.Rows), s.r0)
	} else if s.bytes {
		p.kern.DotBytes(dots, p.cut[from*p.cutBytes():], b-a, s.kb, p.HeadDim, s.n)
	} else {
		p.kern.Dots(dots, s.vecs[from*p.padK:], b-a, s.layout, s.kt, p.padK, s.n)
	}
	if p.Softcap > 0 {
		s.cap(a, b)
	}
	return end, a, b
}

// tableHeads is the number of heads whose tables are used at a time: they fill the first-level
// cache. tableRows is the shortest list for which filling tables pays.
const (
	tableHeads = 4
	tableRows  = 256
)

// dotTables looks up the inner products of the current heads [a, b).
func (s *scorer) dotTables(dots []float32, a, b int) {
	p, blk := s.p, &s.blk
	size := attend.TableFloats(p.HeadDim)
	if !s.hasTables {
		s.hasTables = true
		s.tables = grow(s.tables, len(s.qs)*p.Group*size)
		for i := range len(s.qs) * p.Group {
			at := (s.first[0] + i) * p.padK
			attend.FillTables(s.tables[i*size:(i+1)*size], s.vecs[at:at+p.HeadDim])
		}
	}
	attend.DotTables(dots, s.tables[a*size:], b-a, blk.form.Key.K, blk.k, int(blk.form.Key.Rows), p.HeadDim,
		s.r0, s.n)
}

// cap turns inner products into capped scores.
func (s *scorer) cap(a, b int) {
	softcap := float64(s.p.Softcap)
	for h := a; h < b; h++ {
		dots := s.heads.Dots[h*tileRows:][:s.n]
		var shift float64
		if s.shifts {
			shift = float64(s.shift[h])
		}
		for r := range dots {
			x := float64(float64(dots[r])*float64(s.mul[r])) + shift
			dots[r] = float32(softcap * math.Tanh(x/softcap))
		}
	}
}
