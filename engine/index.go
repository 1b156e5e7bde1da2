// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"time"
)

// index finds a segment by its tokens together with all tokens before it.
type index struct {
	at    map[key]mark
	nodes []*prefix
	clock uint64
}

// mark is where the tokens of a key end.
type mark struct {
	node   *prefix
	tokens int64
}

// same reports whether the segments of two nodes are of the same tokens. Those behind the last key are known by the
// next one only.
func (n *prefix) same(o *prefix) bool {
	return n.seg == o.seg || n.seg.hi() == o.seg.hi() && n.last == o.last &&
		(n.seg.hi()%prefixTokens == 0 || n.after == o.after && n.after != key{})
}

// add puts a node into the index. Its first key is number first.
func (x *index) add(n *prefix, first int64) {
	if x.at == nil {
		x.at = map[key]mark{}
	}
	for i, k := range n.keys {
		x.at[k] = mark{n, (first + int64(i) + 1) * prefixTokens}
	}
	if n.parent != nil {
		n.parent.children++
	}
	x.nodes = append(x.nodes, n)
	x.use(n)
}

// use marks a node and those before it as used now.
func (x *index) use(n *prefix) {
	x.clock++
	for now := time.Now(); n != nil; n = n.parent {
		n.used, n.at = x.clock, now
	}
}

// evict frees segments that only the index holds, the longest unused first, until missing reports
// nothing. It reports whether it freed any.
func (x *index) evict(c *Cache, missing func() int64) (did bool, err error) {
	for missing() > 0 {
		at := -1
		for i, n := range x.nodes {
			if n.children == 0 && n.seg.refs == 1 && n.seg.pinned == 0 &&
				(at < 0 || n.used < x.nodes[at].used) {
				at = i
			}
		}
		if at < 0 {
			return did, nil
		}
		did = true
		if err := x.unlist(c, at); err != nil {
			return did, err
		}
	}
	return did, nil
}

// prune removes nodes whose segments have lost rows, and those after them: who found them would not know that
// tokens are missing.
func (x *index) prune(c *Cache) error {
	for _, q := range c.seqs {
		if q.chain.follows && slices.ContainsFunc(q.segs, func(g *segment) bool { return g.lost }) {
			q.unfollow()
		}
	}
	for done := false; !done; { // from the ends of the chains
		done = true
		for at := len(x.nodes) - 1; at >= 0; at-- {
			if n := x.nodes[at]; n.children == 0 && n.lost() {
				if err := x.unlist(c, at); err != nil {
					return err
				}
				done = false
			}
		}
	}
	return nil
}

// lost reports whether a node, or one before it, has lost rows.
func (n *prefix) lost() bool {
	for ; n != nil; n = n.parent {
		if n.seg.lost {
			return true
		}
	}
	return false
}

// unlist removes a node from the index.
func (x *index) unlist(c *Cache, at int) error {
	n, last := x.nodes[at], len(x.nodes)-1
	emit(&c.cfg, Removed, n)
	x.nodes[at], x.nodes[last] = x.nodes[last], nil
	x.nodes = x.nodes[:last]
	for _, k := range n.keys {
		delete(x.at, k)
	}
	if n.parent != nil {
		n.parent.children--
	}
	c.led.give(forIndex, prefixBytes+int64(len(n.keys))*keyBytes)
	for _, q := range c.seqs { // it may go on from here
		if q.chain.node == n {
			q.chain.node = n.parent
		}
	}
	n.seg.listed--
	if n.sinks != nil {
		n.sinks.listed--
		if err := c.unref(n.sinks); err != nil {
			return err
		}
	}
	return c.unref(n.seg)
}
