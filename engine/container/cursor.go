// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"math"
)

// cursor reads one header field. It keeps the first error.
type cursor struct {
	place
	b   []byte
	off int64 // of b in the file
	err error
}

func (c *cursor) fail(what string, want, got any) {
	if c.err == nil {
		c.err = c.corrupt(c.off, what, want, got)
	}
}

// bytes returns the next n bytes, or nothing after an error.
func (c *cursor) bytes(n int) []byte {
	if c.err == nil && (n < 0 || n > len(c.b)) {
		c.fail("field is too short", n, len(c.b))
	}
	if c.err != nil {
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	c.off += int64(n)
	return v
}

func (c *cursor) uint(n int) uint64 {
	var v [8]byte
	copy(v[:], c.bytes(n))
	return binary.LittleEndian.Uint64(v[:])
}

func (c *cursor) u32() uint32 { return uint32(c.uint(4)) }

func (c *cursor) size() int { return int(min(c.uint(4), math.MaxInt32)) }

func (c *cursor) string(n int) string { return string(c.bytes(n)) }

func (c *cursor) floats(n int) []float32 {
	b := c.bytes(4 * n)
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

func (c *cursor) zero(n int) {
	for range n {
		if v := c.uint(1); v != 0 {
			c.fail("reserved byte", 0, v)
		}
	}
}

func (c *cursor) done() error {
	if len(c.b) != 0 {
		c.fail("field is too long", nil, len(c.b))
	}
	return c.err
}
