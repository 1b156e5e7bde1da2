// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
)

// pricing is the memory of the items that pressure chooses from.
type pricing struct {
	heap []item
}

// item is a side of a block that can go one rung down, or both sides of one that can only be dropped.
type item struct {
	price float64 // damage a byte freed
	seg   int32   // number in the list of segments
	block int32
	side  int8
}

// relieve makes room after a step, if the cache is fuller than it likes to be.
func (c *Cache) relieve() error { return nil }

// makeRoom frees memory until n[class] slots and other bytes fit.
func (c *Cache) makeRoom(ctx context.Context, n []int, other int64) error {
	if c.arena.room(n, other) {
		return nil
	}
	if err := c.arena.shrink(other); err != nil {
		return c.broken(err)
	}
	if c.arena.room(n, other) {
		return nil
	}
	return errNoRoom
}

// refuse counts and logs a refusal.
func (c *Cache) refuse(call string, seq uint64, err error) {
	c.stats.Refusals++
	if c.cfg.Logger != nil {
		c.cfg.Logger.Warn("kvist: "+call+" refused", "sequence", seq, "error", err, "held", c.led.held,
			"budget", c.led.budget)
	}
}
