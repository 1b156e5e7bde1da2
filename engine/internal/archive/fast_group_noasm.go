// SPDX-License-Identifier: Apache-2.0

//go:build noasm || !amd64

package archive

type groupTables struct{}

func (q *rowQuantizer) prepareGroups() {}

func (s *levels) quick(*rowQuantizer, []uint16, []float32, []int16, int, float32) (sum, slow uint32, ok bool) {
	return 0, 0, false
}

func (s *levels) quickPair(*rowQuantizer, *lane, []float32, int, *rowScales, *rowScales, [2]float32) bool {
	return false
}
