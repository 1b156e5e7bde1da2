// SPDX-License-Identifier: Apache-2.0

package cpu

// tally holds sums of exp(score - top) over the rows of entries, and the tops that they are relative to;
// nil if they are not kept.
type tally struct {
	sums []float64
	tops []float32
}

// Tallies: for Attention.Mass each entry has its place. Means of V need only one for neighbours of a
// group, the first one's.
const (
	massTally = iota
	meanTally
	tallies
)

// split divides the memory for tallies.
func (p *part) split(mass, mean bool) {
	all := p.tally[0]
	p.tally = [tallies]tally{}
	n := len(all.tops)
	switch {
	case mass && mean:
		p.tally[massTally], p.tally[meanTally] = tally{all.sums[:n/2], all.tops[:n/2]}, tally{all.sums[n/2:], all.tops[n/2:]}
	case mass:
		p.tally[massTally] = all
	case mean:
		p.tally[meanTally] = all
	}
}

// keep begins a tally of entry i of the piece.
func (s *scratch) keep(k int, dst *part, i int) {
	s.settle(k, dst.top)
	heads, all := len(dst.top), &dst.tally[k]
	s.tally[k] = tally{all.sums[i*heads : (i+1)*heads], all.tops[i*heads : (i+1)*heads]}
}

// settle records what a tally is relative to, if there is one.
func (s *scratch) settle(k int, tops []float32) {
	dst := s.tally[k].tops
	if dst == nil {
		return
	}
	dst = dst[:len(tops)]
	if !s.low {
		copy(dst, tops)
		return
	}
	shift := s.shift[:len(tops)]
	for h, t := range tops {
		dst[h] = t + shift[h]
	}
}
