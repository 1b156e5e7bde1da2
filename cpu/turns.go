// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"slices"

	"github.com/kvist-project/kvist/cpu/internal/slab"
)

// turns orders calls and frees. A call has a turn from open to leave. Memory that was freed at some
// turn is used by calls of that turn and before; it goes back to the pool when the last of them has
// left.
type turns struct {
	last    uint64   // 1 and up
	running []uint64 // turns of the calls that run
	retired []retired
}

// retired is freed memory that a call may still use.
type retired struct {
	piece slab.Piece
	turn  uint64 // of the last call that had begun
}

// enter begins a call.
func (t *turns) enter() uint64 {
	t.last++
	t.running = append(t.running, t.last)
	return t.last
}

// leave ends a call and passes on the memory that no call uses any more.
func (t *turns) leave(turn uint64, free func(slab.Piece)) {
	i := slices.Index(t.running, turn)
	last := len(t.running) - 1
	t.running[i] = t.running[last]
	t.running = t.running[:last]
	if len(t.retired) == 0 {
		return
	}
	n := 0 // retired has the turns in order
	for n < len(t.retired) && !t.inUse(t.retired[n].turn) {
		free(t.retired[n].piece)
		n++
	}
	t.retired = slices.Delete(t.retired, 0, n)
}

// inUse reports whether a call runs that began at turn or before.
func (t *turns) inUse(turn uint64) bool {
	for _, r := range t.running {
		if r <= turn {
			return true
		}
	}
	return false
}

// enter begins the copy of a buffer's bytes.
func (b *Backend) enter() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.turns.enter()
}

// leave ends what open or enter began.
func (b *Backend) leave(turn uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turns.leave(turn, b.pool.Free)
	b.closePool()
}

// retire frees memory once no call uses it. b.mu is held.
func (b *Backend) retire(m slab.Piece) {
	if len(b.turns.running) == 0 {
		b.pool.Free(m)
		return
	}
	b.turns.retired = append(b.turns.retired, retired{m, b.turns.last})
}

// closePool unmaps all memory of a closed backend once no call runs. b.mu is held.
func (b *Backend) closePool() {
	if b.closed && len(b.turns.running) == 0 {
		b.pool.Close()
	}
}
