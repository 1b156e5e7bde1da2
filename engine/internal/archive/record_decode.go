// SPDX-License-Identifier: Apache-2.0

package archive

// recordDecoder decodes the lanes of a record, one after the other.
type recordDecoder struct {
	*Codec
	*loop
	seg      *Segment
	ts       []*Transform
	parts    *streams
	told     *told
	staged   *stagedDecoder
	missing  []int // refinements of each stream
	turns    *Turns
	sin, cos []float32
}

// lane decodes lane i, at a place of the order, with y for its components. noise is nil or gets the expected error
// of each row.
func (d *recordDecoder) lane(place, i int, y, noise []float32) error {
	seg, parts, t := d.seg, d.parts, d.ts[i]
	sides := len(seg.Dims)
	l, steps := d.Codec.lane(seg, i, d.told, seg.Step8[i])
	var of []uint8
	if parts.chunks > 1 {
		of = d.streamsOf(seg.Class[i/sides], parts.parts)
		if err := d.staged.lane(i, l, y, of); err != nil {
			return err
		}
	} else if !d.c.decodeLane(l, parts.lanes[i].b, y) {
		return corrupt("lane", i/sides, i%sides, parts.lanes[i].at, "the stream does not end where it should")
	}
	var guess []float32
	if d.told.predicted[i] {
		guess = d.predict(i)
	}
	follow(y, steps, guess)
	d.add(place, y, d.told.up[i])
	t.restore(seg.Rows[i], y, t.mean(seg.bare[i]))
	if sides == 2 && i%2 == 0 {
		d.turns.rope.apply(seg.Rows[i], t.Dim, d.sin, d.cos, 1)
		if parts.constants != nil && parts.constants[i] != nil {
			addConstant(seg.Rows[i], parts.constants[i])
		}
	}
	if noise != nil {
		d.noise(noise, l, steps, t.Gain, func(t int) int {
			switch {
			case len(parts.lanes[i].b) == 0:
				return nothingLeft
			case of == nil:
				return 0
			}
			return d.missing[of[t]]
		})
	}
	return nil
}
