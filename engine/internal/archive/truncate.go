// SPDX-License-Identifier: Apache-2.0

package archive

import "slices"

// Part is a stream of a payload.
type Part struct {
	Bytes int // 0 for one that was dropped
	// Worth is the squared error that dropping it adds, in squared steps.
	Worth float64
}

// Contents describes the streams of a payload. Errors and energies are in squared steps of their
// rows, which cost the same everywhere.
type Contents struct {
	// Lanes are the bases of the lanes; without refinements a base is the whole lane.
	Lanes []Part
	// Refined is [refinements][streams], the coarsest first. Stream i holds tokens of group i %
	// NumGroups, the heaviest tokens in group 0, and refines stream i of the refinement before.
	Refined [][]Part
	// Energy is that of all rows less their means. Error is the error of the complete payload.
	Energy, Error float64
}

// Streams returns the streams of a payload.
//
// Errors: *CorruptError, also for a payload in lossless mode, which has no streams to drop.
func Streams(payload []byte, lanes int) (*Contents, error) {
	p, err := parse(payload, lanes)
	if err != nil {
		return nil, err
	}
	c := &Contents{Energy: p.energy.value(), Error: p.err.value()}
	for _, l := range p.lanes {
		c.Lanes = append(c.Lanes, Part{len(l.b), l.worth.value()})
	}
	for _, r := range p.refined {
		var parts []Part
		for _, s := range r {
			parts = append(parts, Part{len(s.b), s.worth.value()})
		}
		c.Refined = append(c.Refined, parts)
	}
	return c, nil
}

// Keep names the streams that Truncate keeps.
type Keep struct {
	Lanes   []bool // the bases; without one of them no refinement can be kept
	Refined []int  // how many refinements each stream keeps; nil for none
}

// Truncate appends to dst the payload with the streams that keep names, as far as it has them.
// Nothing is coded again.
//
// Errors: *CorruptError; quant.ErrShape for a keep that does not fit.
func Truncate(dst, payload []byte, keep *Keep) ([]byte, error) {
	p, err := parse(payload, len(keep.Lanes))
	if err != nil {
		return dst, err
	}
	if keep.Refined != nil && len(p.refined) > 0 && len(keep.Refined) != len(p.refined[0]) {
		return dst, shapef("refinements of %d streams, the payload has %d", len(keep.Refined), len(p.refined[0]))
	}
	kept := func(i int) int {
		if keep.Refined == nil {
			return 0
		}
		return keep.Refined[i]
	}
	for n := range p.refined {
		for i := range p.refined[n] {
			if n >= kept(i) {
				p.refined[n][i].b = nil
			}
		}
	}
	for i, k := range keep.Lanes {
		if k {
			continue
		}
		p.lanes[i].b = nil
		for n := range p.refined {
			if slices.ContainsFunc(p.refined[n], func(s stream) bool { return len(s.b) > 0 }) {
				return dst, shapef("lane %d: its base goes and refinements stay", i)
			}
		}
	}
	return p.append(dst), nil
}
