// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"slices"
)

// Who gets memory when it is short: users that hold little before those that hold much, answers under way before
// pins.

// userOf names the user of a conversation.
func userOf(r *Runner, c *conversation) string {
	if r.o.TenantOf != nil {
		return r.o.TenantOf(c.salt)
	}
	return string(c.salt)
}

// heldByUser returns the bytes of the rows of all conversations of each user.
func heldByUser(r *Runner) map[string]int64 {
	held := map[string]int64{}
	for c := range r.all {
		held[userOf(r, c)] += c.seq.Bytes()
	}
	return held
}

// own makes a conversation one of its user's.
func own(r *Runner, c *conversation) error {
	if r.o.Tenants == 0 {
		return nil
	}
	user := userOf(r, c)
	t := r.tenants[user]
	if t == nil && len(r.tenants) < r.o.Tenants {
		var err error
		if t, err = r.cache.NewTenant(r.o.Cache.Budget / int64(2*r.o.Tenants)); err != nil {
			return err
		}
		r.tenants[user] = t
	}
	return c.seq.Limit(t, 0)
}

// loosen makes room of the pinned conversation that was idle for longest: those under way do not wait for idle
// ones, whatever these were promised. It is parked as it is where there is a folder. Else pressure may take from
// it, as from the last one.
func loosen(r *Runner) bool {
	for i, c := range r.idle {
		if !c.pinned || c.loose {
			continue
		}
		r.log.Info("kvist: a pinned conversation goes for want of memory", "tokens", len(c.tokens))
		if r.shelf != nil {
			err := r.shelf.park(c)
			if err == nil || c.lost {
				r.idle = slices.Delete(r.idle, i, i+1)
				r.counts.Closed++
				return true
			}
			r.log.Warn("kvist: park a pinned conversation", "error", err)
		}
		if err := release(r, c); err != nil {
			r.log.Warn("kvist: release a pinned conversation", "error", err)
			continue
		}
		return true
	}
	return false
}

// release lets pressure take from a pinned conversation.
func release(r *Runner, c *conversation) error {
	err := c.seq.Pin(false)
	if c.loose = err == nil; c.loose {
		r.counts.Loosened++
	}
	return err
}
