// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package archive

import (
	"math/bits"

	"golang.org/x/sys/cpu"
)

// LZCNT has no flag of its own in package cpu; every processor with AVX-512 has it.
var useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL &&
	cpu.X86.HasBMI2

// quantizePairAVX512 knows these by number.
var (
	_ = [1]struct{}{}[numSymbols-64]
	_ = [1]struct{}{}[classBase+20]
	_ = [1]struct{}{}[groupSize-8]
	_ = [32 - numClasses]struct{}{}
)

// nearLevels is how many magnitudes have their thresholds in registers, by class.
const nearLevels = 3

// pairRows are two rows, one after the other, as quantizePairAVX512 takes them; it knows the offsets.
type pairRows struct {
	y        *float32
	codes    [2]*uint16
	scale    [2]*int16
	expected [2]*int32 // 8*log2 of what is expected before each group, the prior included
	seen     [2]uint64 // as in rowState, the prior included
	dim      int
	groups   int
	at       int // the group to begin with; after the call the one to go on with
	inv      [2]float32
	slow     uint32   // of the last group, those that are no plain symbol: eight of each row
	shift    [2]int32 // of the last group, not limited yet
}

// quantizePairAVX512 fills in the symbols of groups. It stops before a group with a component that is
// no plain symbol, and at the end of the rows. Every level must be the nearest or the next below
// (rowQuantizer.once).
//
//go:noescape
func quantizePairAVX512(t *groupTables, p *pairRows)

// quickPair is row for rows t and t+1. It returns false if the machine lacks AVX-512 or a row does
// not consist of whole groups.
func (s *levels) quickPair(q *rowQuantizer, l *lane, y []float32, t int, even, odd *rowScales, inv [2]float32) bool {
	d := l.dim
	if !useAVX512 || !q.once || d%groupSize != 0 || d == 0 {
		return false
	}
	y = y[t*d : (t+2)*d]
	codes := [2][]uint16{s.codes[t*d : (t+1)*d], s.codes[(t+1)*d : (t+2)*d]}
	of := [2]*rowScales{even, odd}
	p := pairRows{y: &y[0], dim: d, groups: d / groupSize, inv: inv,
		codes:    [2]*uint16{&codes[0][0], &codes[1][0]},
		scale:    [2]*int16{&even.scale[:d][0], &odd.scale[:d][0]},
		expected: [2]*int32{&even.logs[:d/groupSize][0], &odd.logs[:d/groupSize][0]},
		seen:     [2]uint64{uint64(q.Prior), uint64(q.Prior)}}
	for {
		quantizePairAVX512(&q.groups, &p)
		for slow := p.slow; slow != 0; slow &= slow - 1 {
			r, i := bits.TrailingZeros32(slow)/groupSize, bits.TrailingZeros32(slow)%groupSize
			i += (p.at - 1) * groupSize
			codes[r][i] = codeSlow
			prior := int(of[r].scale[i])
			m := s.notPlain(q, y[r*d+i]*inv[r], prior+clampShift(int(p.shift[r])), prior, r)
			p.seen[r] += uint64(m) << 12
		}
		if p.at == p.groups {
			return true
		}
	}
}
