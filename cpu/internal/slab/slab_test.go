// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// live is a piece with the byte that fills it.
type live struct {
	Piece
	mark byte
}

// churn allocates and frees at random. Sizes are spread evenly over the powers of two up to most.
type churn struct {
	t     testing.TB
	rng   *rand.Rand
	pool  Pool
	most  int
	all   []live
	bytes int // of all
}

func (c *churn) size() int {
	n := 1
	for n < c.most && c.rng.IntN(12) > 0 {
		n *= 2
	}
	return 1 + c.rng.IntN(n)
}

func (c *churn) alloc() {
	n := c.size()
	m, err := c.pool.Alloc(n)
	require.NoError(c.t, err)
	if len(m.Mem) != n || cap(m.Mem) != n {
		c.t.Fatalf("%d bytes of %d, asked for %d", len(m.Mem), cap(m.Mem), n)
	}
	if uintptr(unsafe.Pointer(&m.Mem[0]))%Align != 0 {
		c.t.Fatalf("%d bytes are not aligned", n)
	}
	if i := firstNot(m.Mem, 0); i >= 0 {
		c.t.Fatalf("byte %d of a new piece of %d is %d", i, n, m.Mem[i])
	}
	l := live{m, byte(1 + c.rng.IntN(255))}
	for i := range m.Mem {
		m.Mem[i] = l.mark
	}
	c.all, c.bytes = append(c.all, l), c.bytes+n
}

func firstNot(p []byte, b byte) int {
	if bytes.Count(p, []byte{b}) == len(p) {
		return -1
	}
	for i, x := range p {
		if x != b {
			return i
		}
	}
	return -1
}

func (c *churn) free() {
	i := c.rng.IntN(len(c.all))
	m := c.all[i]
	if at := firstNot(m.Mem, m.mark); at >= 0 {
		c.t.Fatalf("byte %d of %d is %d, was %d", at, len(m.Mem), m.Mem[at], m.mark)
	}
	c.pool.Free(m.Piece)
	c.bytes -= len(m.Mem)
	c.all[i] = c.all[len(c.all)-1]
	c.all = c.all[:len(c.all)-1]
}

// run takes steps at random and keeps about target bytes.
func (c *churn) run(steps, target int) {
	for range steps {
		if len(c.all) > 0 && (c.bytes > target || c.rng.IntN(2) == 0) {
			c.free()
		} else {
			c.alloc()
		}
	}
}

// Pieces are aligned, zero, of the size asked for, and keep their bytes until they are freed. A pool
// that is empty again holds one arena at most.
func TestPool_Random(t *testing.T) {
	for _, most := range []int{300, 20 << 10, 1 << 20, 40 << 20} {
		c := &churn{t: t, rng: rand.New(rand.NewPCG(uint64(most), 1)), most: most}
		steps := min(1500, 1<<30/most)
		if testing.Short() {
			steps /= 5
		}
		for _, target := range []int{48 << 20, 1 << 20, 24 << 20} {
			c.run(steps, target)
		}
		for len(c.all) > 0 {
			c.free()
		}
		for _, a := range c.pool.arenas {
			require.Equal(t, []span{{0, arenaBytes}}, a.free)
			require.Equal(t, -1, firstNot(a.mem[:1<<20], 0))
		}
		if canMap {
			require.LessOrEqual(t, len(c.pool.arenas), 1)
			require.LessOrEqual(t, c.pool.Mapped(), int64(arenaBytes))
		}
		c.pool.Close()
		require.Zero(t, c.pool.Mapped())
	}
}

// Slots are at most a sixteenth larger than what is asked for, above sizes of 1 KiB.
func TestClassOf(t *testing.T) {
	last := -1
	for n := 1; n <= slotMost; n++ {
		class, size := classOf(n)
		require.GreaterOrEqual(t, class, last)
		require.LessOrEqual(t, class, last+1)
		require.GreaterOrEqual(t, size, n)
		require.Less(t, size, n+max(Align, n/steps+1), "%d bytes", n)
		require.Zero(t, size%Align)
		last = class
	}
	require.Equal(t, slotClasses-1, last)
	require.LessOrEqual(t, runBytes/Align, maxSlots)
}

// Free ranges join their neighbours, and the arena is whole in the end.
func TestArena_Joins(t *testing.T) {
	if !canMap {
		t.Skip("no arenas on this system")
	}
	var p Pool
	defer p.Close()
	var m []Piece
	for range 5 {
		one, err := p.Alloc(slotMost + 100)
		require.NoError(t, err)
		for i := range one.Mem {
			one.Mem[i] = 7
		}
		m = append(m, one)
	}
	size := (slotMost + 100 + Align - 1) &^ (Align - 1)
	a := p.arenas[0]
	p.Free(m[1])
	p.Free(m[3])
	require.Equal(t, []span{{size, 2 * size}, {3 * size, 4 * size}, {5 * size, arenaBytes}}, a.free)
	p.Free(m[2])
	require.Equal(t, []span{{size, 4 * size}, {5 * size, arenaBytes}}, a.free)
	require.Equal(t, -1, firstNot(a.mem[size:4*size], 0))
	require.Equal(t, -1, firstNot(m[0].Mem, 7))
	require.Equal(t, -1, firstNot(m[4].Mem, 7))
	big, err := p.Alloc(3 * size)
	require.NoError(t, err)
	require.Equal(t, size, big.at, "the lowest address that has room")
}
