// SPDX-License-Identifier: Apache-2.0

package vectors

import "sync"

// idMap finds rows by id: a table of row numbers with open addressing. It is empty while ids are row numbers.
// Its ids are those of the newest state.
type idMap struct {
	mu    sync.RWMutex // a change of the table and the state that it belongs to are published together
	table []uint32     // row + 1, 0 for none; the length is a power of two
	used  int
}

func (m *idMap) slot(id uint64) int {
	h := id * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	return int(h>>32) & (len(m.table) - 1)
}

// find returns the row of an id.
func (m *idMap) find(s *state, id uint64) (row int, ok bool) {
	if s.dense {
		return int(id), id < uint64(s.rows)
	}
	if len(m.table) == 0 {
		return 0, false
	}
	for i := m.slot(id); m.table[i] != 0; i = (i + 1) & (len(m.table) - 1) {
		if r := int(m.table[i] - 1); r < s.rows && s.id(r) == id {
			return r, true
		}
	}
	return 0, false
}

// add enters the rows from first on of a state.
func (m *idMap) add(s *state, first int) {
	if 4*(m.used+s.rows-first) > 3*len(m.table) {
		n := 64
		for 2*n < 3*s.rows { // filled to two thirds at most
			n *= 2
		}
		m.table, m.used, first = make([]uint32, n), 0, 0
	}
	for r := first; r < s.rows; r++ {
		i := m.slot(s.id(r))
		for m.table[i] != 0 {
			i = (i + 1) & (len(m.table) - 1)
		}
		m.table[i] = uint32(r) + 1
		m.used++
	}
}

// entry returns the slot of an id that is there, in a state.
func (m *idMap) entry(id uint64, row int) int {
	i := m.slot(id)
	for m.table[i] != uint32(row)+1 {
		i = (i + 1) & (len(m.table) - 1)
	}
	return i
}

// remove takes the id of a row out and closes the gap.
func (m *idMap) remove(s *state, row int) {
	mask := len(m.table) - 1
	gap := m.entry(s.id(row), row)
	for i := (gap + 1) & mask; m.table[i] != 0; i = (i + 1) & mask {
		home := m.slot(s.id(int(m.table[i] - 1)))
		if (i-home)&mask >= (i-gap)&mask {
			m.table[gap], gap = m.table[i], i
		}
	}
	m.table[gap] = 0
	m.used--
}
