// SPDX-License-Identifier: Apache-2.0

package engine

import "unsafe"

// purpose says what bytes are held for.
type purpose int

// The purposes of bytes.
const (
	forRows    purpose = iota // slabs: rows of K and V, and positions of sorted rows
	forTables                 // descriptors of blocks and the tables of the arena
	forQueries                // kept queries and what goes with them
	forScratch                // staging buffers and lists of steps
	forIndex                  // keys of shared prefixes
	forState                  // opaque state of sequences
	purposes
)

// ledger counts every byte that a cache holds. Bytes are taken before the memory is.
type ledger struct {
	budget int64
	held   int64
	peak   int64
	by     [purposes]int64
}

// take counts n more bytes. It reports false, and counts nothing, if they exceed the budget.
func (l *ledger) take(p purpose, n int64) bool {
	if n > l.budget-l.held {
		return false
	}
	l.held += n
	l.by[p] += n
	l.peak = max(l.peak, l.held)
	return true
}

// give counts n bytes as free again.
func (l *ledger) give(p purpose, n int64) {
	l.held -= n
	l.by[p] -= n
}

// left returns the bytes that may still be taken.
func (l *ledger) left() int64 { return l.budget - l.held }

// grown returns a slice with room for n elements, and counts what it grows by. Old elements are
// copied. ok is false if the budget does not hold the growth.
func grown[T any](l *ledger, p purpose, s []T, n int) (_ []T, ok bool) {
	if n <= cap(s) {
		return s, true
	}
	room := slack(n)
	size := int64(unsafe.Sizeof(*new(T)))
	if !l.take(p, int64(room)*size) {
		room = n
		if !l.take(p, int64(room)*size) {
			return s, false
		}
	}
	t := make([]T, len(s), room)
	copy(t, s)
	l.give(p, int64(cap(s))*size)
	return t, true
}

// slack returns the room for n elements of a list that grows: a fifth more, so that a growing context does
// not copy its lists at every page.
func slack(n int) int { return n + n/5 }

// dropped counts a slice as free and returns nil.
func dropped[T any](l *ledger, p purpose, s []T) []T {
	l.give(p, int64(cap(s))*int64(unsafe.Sizeof(*new(T))))
	return nil
}
