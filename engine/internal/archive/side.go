// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"github.com/kvist-project/kvist/quant"
)

// Deviations in the side stream, in quarter octaves.
const (
	deltaZero   = 7            // the symbol of a deviation as expected
	deltaEscape = sideSyms - 1 // the symbol of a deviation that follows in bits
	deltaBits   = 11
	shiftBits   = 12
	stepZero    = 2048
)

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

// number codes v in hexadecimal digits, the lowest first, with a flag before each.
func (e *sideEncoder) number(m *sideModel, v uint64) {
	for ; v > 0; v >>= 4 {
		e.raw(1, 1)
		e.put(m, int(v&15))
	}
	e.raw(0, 1)
}

// number reads what number of sideEncoder wrote. It returns false for numbers larger than any
// position.
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

// raised reads what raised of sideEncoder wrote.
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

// encodeSide appends the side stream: whether positions count up by one, and if not, each gap; for
// every lane its step, the deviations of its components and the rows of coarser steps; for every head
// the class of every token.
func (c *Codec) encodeSide(dst []byte, p *Prepared, of *told, step8 int) []byte {
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
		if e.raw(b2u(of.shift[i] != 0), 1); of.shift[i] != 0 {
			e.raw(uint32(of.shift[i]+1<<(shiftBits-1)), shiftBits)
		}
		for j, d := range of.delta[i] {
			if e.put(&m.delta[i%len(seg.Dims)], int(d)); d == deltaEscape {
				e.raw(uint32(int(of.std8[i][j])/2+1<<(deltaBits-1)), deltaBits)
			}
		}
		e.raised(m, of.up[i])
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

// decodeSide reads the side stream into seg. predictors are those of the lanes that are predicted, nil for none.
func (c *Codec) decodeSide(seg *Segment, ts []*Transform, predictors []*Predictor, b []byte) (*told, error) {
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
	lanes := len(seg.Rows)
	of := &told{std8: make([][]int16, lanes), up: make([][]uint8, lanes), predicted: make([]bool, lanes)}
	seg.Step8, seg.bare = make([]int, lanes), make([]bool, lanes)
	for i := range seg.Rows {
		if seg.Step8[i] = int(d.raw(12)) - stepZero; max(seg.Step8[i], -seg.Step8[i]) > MostStep8 {
			return nil, corrupt("side stream", i/len(seg.Dims), i%len(seg.Dims), d.pos, "a step of 2^(%d/8)", seg.Step8[i])
		}
		seg.bare[i] = d.raw(1) == 1
		shift := 0
		if d.raw(1) == 1 {
			shift = int(d.raw(shiftBits)) - 1<<(shiftBits-1)
		}
		expected := ts[i].Std8
		if predictors != nil && predictors[i] != nil {
			expected, of.predicted[i] = predictors[i].Std8, true
		}
		std8 := make([]int16, ts[i].Dim)
		of.std8[i] = std8
		for j := range std8 {
			sym := d.get(&m.delta[i%len(seg.Dims)])
			if sym == deltaEscape {
				std8[j] = int16(2 * (int(d.raw(deltaBits)) - 1<<(deltaBits-1)))
				continue
			}
			std8[j] = expected[j] + int16(2*(sym-deltaZero+shift))
		}
		var ok bool
		if of.up[i], ok = d.raised(m, len(seg.Pos)); !ok {
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
	return of, nil
}

// Side reads the classes and steps of a payload into seg, of which Layer, First, Dims and the
// lengths of Pos and Rows are given, and leaves the rows alone.
//
// Errors: as Decode.
func (c *Codec) Side(seg *Segment, b []byte) error {
	ts, err := c.layer(seg.Layer, len(seg.Rows)/len(seg.Dims), seg.Dims)
	if err != nil {
		return err
	}
	p, err := parse(b, len(seg.Rows))
	if err != nil {
		return err
	}
	var predictors []*Predictor
	if p.predicted != nil {
		if predictors, err = c.Set.told(seg.Layer, p.predicted); err != nil {
			return err
		}
	}
	_, err = c.decodeSide(seg, ts, predictors, p.side)
	return err
}
