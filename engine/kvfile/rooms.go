// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"slices"
	"sync"
)

// rowRoom is what a record is decoded in: rows stay as they are until the next one.
type rowRoom struct {
	rows   []float32
	packed []byte
}

// rowRooms are rooms that are not in use. A sync.Pool would throw them away as often as the collector
// runs, and while it has not, what was thrown away takes memory beside what takes its place.
type rowRooms struct {
	mu   sync.Mutex
	free []*rowRoom
}

func (r *rowRooms) take() *rowRoom {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.free)
	if n == 0 {
		return new(rowRoom)
	}
	room := r.free[n-1]
	r.free = r.free[:n-1]
	return room
}

func (r *rowRooms) put(room *rowRoom) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, room)
}

// roomFor returns n values of *all, which grows where it has to.
func roomFor[T any](all *[]T, n int) []T {
	*all = slices.Grow((*all)[:0], n)[:n]
	return *all
}
