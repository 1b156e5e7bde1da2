// SPDX-License-Identifier: Apache-2.0

package engine

// Stats describe a cache at one time. Counters start at Open.
type Stats struct {
	BudgetBytes  int64 // that the cache may hold
	HeldBytes    int64 // that it holds
	FreeBytes    int64 // that new rows can take: unused slabs and the rest of the budget
	PeakBytes    int64 // the most that it has held
	RowBytes     int64 // of HeldBytes: slabs of K, V and positions
	TableBytes   int64 // descriptors
	QueryBytes   int64 // kept queries
	ScratchBytes int64 // staging and lists
	IndexBytes   int64 // keys of shared prefixes
	StateBytes   int64 // opaque state of sequences; see Sequence.SetState
	Sequences    int
	Tokens       int64 // committed, of all sequences
	// Sides counts the sides of blocks at each level, by the name of the coding; "dropped" holds those
	// of which nothing is left. A shared block counts once.
	Sides map[string]int
	// LevelBytes are the bytes of rows at each level, positions not counted.
	LevelBytes map[string]int64
	// Damage is the sum of what pressure's demotions were expected to cost: attention of recent queries times
	// relative error. It compares times of one cache, not caches.
	Damage float64
	// What went to and came from the store and files, by sequences.
	Parked, Resumed, Saved, Loaded uint64
	Steps                          uint64 // committed
	Units                          uint64 // of work that pressure did: sides of blocks recoded, blocks dropped
	Dropped                        uint64 // blocks
	Folded                         uint64 // times that the window of an idle sequence was closed
	// PrefixQueries and PrefixHits count the tokens that MatchPrefix was asked for, and those it found.
	PrefixQueries, PrefixHits uint64
	Skipped                   uint64 // records of the store that could not be used
	Refusals                  uint64 // steps and sequences that were refused for want of memory
}

// Spare returns the bytes that new rows can take before pressure takes detail from what is there: what is free of
// Config.Exact of the budget, and shared prefixes that no sequence holds; less what parking a sequence takes, where
// there is a store.
func (c *Cache) Spare() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0
	}
	n := c.arena.free() - int64((1-c.cfg.Exact)*float64(c.cfg.Budget))
	if c.cfg.Store != nil {
		part := parts(&c.memory, false)[0]
		exact := int64(2*(part.to-part.from)*c.cfg.Segment) * int64(c.geo.HeadDim+c.geo.HeadDimV)
		n -= exact + shrinkBytes(&c.memory, exact) + c.keptBytes(c.cfg.KeptQueries) + reserveRuns*c.arena.runBytes
	}
	for _, x := range c.index.nodes {
		if x.seg.refs == x.seg.listed {
			n += c.segmentBytes(x.seg)
		}
	}
	return n
}

// Stats returns the state of the cache. It looks at every block, while no step can go on: call it a few
// times a second at most.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	l := &c.led
	s.BudgetBytes, s.HeldBytes, s.PeakBytes = l.budget, l.held, l.peak
	s.FreeBytes = c.arena.free()
	s.RowBytes, s.TableBytes, s.QueryBytes, s.ScratchBytes = l.by[forRows], l.by[forTables], l.by[forQueries],
		l.by[forScratch]
	s.IndexBytes, s.StateBytes = l.by[forIndex], l.by[forState]
	s.Sequences = len(c.seqs)
	s.Sides, s.LevelBytes = map[string]int{}, map[string]int64{}
	seen := map[*segment]bool{}
	for _, q := range c.seqs {
		s.Tokens += q.n
		for _, g := range q.segs {
			if seen[g] {
				continue
			}
			seen[g] = true
			for i := range g.blocks {
				b := &g.blocks[i]
				for side := range sides {
					if b.at[side] != 0 || g.closed {
						s.Sides[b.rung[side].String()]++
						if at := b.at[side]; at != 0 {
							s.LevelBytes[b.rung[side].String()] += c.arena.classes[at.class()].bytes
						}
					}
				}
			}
		}
	}
	return s
}
