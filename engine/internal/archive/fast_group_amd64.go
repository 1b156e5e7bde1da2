// SPDX-License-Identifier: Apache-2.0

//go:build !noasm

package archive

import "golang.org/x/sys/cpu"

var useAVX2 = cpu.X86.HasAVX2

// groupTables are read by quantizeGroupAVX2 and quantizePairAVX512, which know the offsets.
type groupTables struct {
	down    *float32 // [numClasses][maxLevel+1]
	most    *uint32  // [numClasses]
	base    int32    // the scale of class 0
	span    int32    // that of the last class, less base
	dead    int32    // the smallest scale of a component that is coded
	symbols int32    // of a class
	least   int32    // of most: no level up to it is above the tables
	level   int32    // the largest one with a symbol, as an integer and as a number
	levelF  float32

	// quantizePairAVX512 alone reads these.
	logs *uint8                   // log8Table
	near *[nearLevels][32]float32 // down by magnitude, from 1 on, and class
}

func (q *rowQuantizer) prepareGroups() {
	q.groups = groupTables{down: &q.down[0][0], most: &q.most[0], base: classBase, span: classTop - classBase,
		dead: deadScale, symbols: numSymbols, least: maxLevel, level: maxLevel, levelF: maxLevel}
	near := new([nearLevels][32]float32)
	for k, m := range q.most {
		q.groups.least = min(q.groups.least, int32(m))
		for n := range near {
			near[n][k] = q.down[k][n+1]
		}
	}
	q.groups.logs, q.groups.near = &log8Table[0], near
}

// quantizeGroupAVX2 fills in the symbols of eight components, y [8] at prior scales [8], which all
// move by shift. It returns the sum of their magnitudes, and a bit for each component that is no
// plain symbol. The symbols of these are undefined, and the sum leaves them out.
//
//go:noescape
func quantizeGroupAVX2(t *groupTables, y *float32, scale *int16, codes *uint16, shift int32,
	inv float32) (sum, slow uint32)

// quick is quantizeGroupAVX2 for a whole group. ok is false if the machine lacks AVX2 or the group is
// not whole.
func (s *levels) quick(q *rowQuantizer, codes []uint16, y []float32, scale []int16, shift int,
	inv float32) (sum, slow uint32, ok bool) {
	if !useAVX2 || len(codes) != groupSize || len(y) != groupSize || len(scale) != groupSize {
		return 0, 0, false
	}
	sum, slow = quantizeGroupAVX2(&q.groups, &y[0], &scale[0], &codes[0], int32(shift), inv)
	return sum, slow, true
}
