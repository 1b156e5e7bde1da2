// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"slices"
	"sync"
)

// Room is what a record is decoded in: rows stay as they are until the next one.
type Room struct {
	rows   []float32
	packed []byte
}

// Rooms are rooms that are not in use. The zero value has none. A sync.Pool would throw them away as often as the collector
// runs, and while it has not, what was thrown away takes memory beside what takes its place.
type Rooms struct {
	mu   sync.Mutex
	free []*Room
}

// Take returns a room that nobody uses.
func (r *Rooms) Take() *Room {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.free)
	if n == 0 {
		return new(Room)
	}
	room := r.free[n-1]
	r.free = r.free[:n-1]
	return room
}

// Put gives a room back.
func (r *Rooms) Put(room *Room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, room)
}

// roomFor returns n values of *all, which grows where it has to.
func roomFor[T any](all *[]T, n int) []T {
	*all = slices.Grow((*all)[:0], n)[:n]
	return *all
}
