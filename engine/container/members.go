// SPDX-License-Identifier: Apache-2.0

package container

// cheapestMember tries every way to code the membership and returns the cheapest. It counts in
// integers, so every machine chooses the same.
func cheapestMember(owner []uint8, sizes []int) int {
	best, bestCost := memberFlat, 0
	if len(sizes) == 1 {
		return best
	}
	for mode := range numMembers {
		if mode == memberEven && !isEven(sizes, len(owner)) {
			continue
		}
		e := newRangeEncoder()
		encodeMembers(&e, mode, owner, sizes)
		if c := e.cost(); mode == memberFlat || c < bestCost {
			best, bestCost = mode, c
		}
	}
	return best
}

func isEven(sizes []int, tokens int) bool {
	for i, n := range sizes {
		if n != evenSize(i, len(sizes), tokens) {
			return false
		}
	}
	return true
}

// evenSize is the size of block i of n if tokens are divided evenly.
func evenSize(i, n, tokens int) int {
	if i < tokens%n {
		return tokens/n + 1
	}
	return tokens / n
}

// urn holds the number of remaining tokens of each block.
type urn struct {
	rem   []uint32
	total uint32
}

func newUrn(sizes []int) urn {
	u := urn{rem: make([]uint32, len(sizes))}
	for i, n := range sizes {
		u.rem[i] = uint32(n)
		u.total += uint32(n)
	}
	return u
}

// without returns the interval of block b in the urn with block skip (-1: none) left out.
func (u *urn) without(b, skip int) (cum, freq, total uint32) {
	for i, n := range u.rem[:b] {
		if i != skip {
			cum += n
		}
	}
	total = u.total
	if skip >= 0 {
		total -= u.rem[skip]
	}
	return cum, u.rem[b], total
}

// find returns the block whose interval contains v, with block skip left out.
func (u *urn) find(v uint32, skip int) (b int, cum uint32) {
	for i, n := range u.rem {
		if i == skip {
			continue
		}
		if v < cum+n {
			return i, cum
		}
		cum += n
	}
	return -1, cum // not reached: v < total
}

func (u *urn) draw(b int) { u.rem[b]--; u.total-- }

// choice sets open if the token after one of block prev can belong either to prev or to another
// block. If only one is possible, same reports whether it is prev.
func (u *urn) choice(prev int) (open, same bool) {
	if prev < 0 || u.rem[prev] == 0 {
		return false, false
	}
	if u.rem[prev] == u.total {
		return false, true
	}
	return true, false
}

func encodeMembers(e *rangeEncoder, mode int, owner []uint8, sizes []int) {
	if mode == memberFlat {
		for _, b := range owner {
			e.uniform(int(b), len(sizes))
		}
		return
	}
	if mode != memberEven {
		left := len(owner)
		for i, n := range sizes[:len(sizes)-1] {
			most := left - (len(sizes) - 1 - i) // each later block holds at least one token
			e.uniform(n-1, most)
			left -= n
		}
	}
	u := newUrn(sizes)
	m := newBitModel()
	prev := -1
	for _, o := range owner {
		b, skip := int(o), -1
		if mode == memberRuns {
			open, same := u.choice(prev)
			if open {
				same = b == prev
				e.bit(same, &m)
			}
			if same {
				u.draw(b)
				continue
			}
			skip = prev
		}
		e.encode(u.without(b, skip))
		u.draw(b)
		prev = b
	}
}

// decodeMembers fills owner. ok is false unless every block gets at least one token.
func decodeMembers(d *rangeDecoder, mode int, owner []uint8, sizes []int) (ok bool) {
	n := len(sizes)
	switch mode {
	case memberFlat:
		for i := range owner {
			b := d.uniform(n)
			owner[i] = uint8(b)
			sizes[b]++
		}
		for _, s := range sizes {
			if s == 0 {
				return false
			}
		}
		return true
	case memberEven:
		for i := range sizes {
			sizes[i] = evenSize(i, n, len(owner))
		}
	default:
		left := len(owner)
		for i := range sizes[:n-1] {
			sizes[i] = d.uniform(left-(n-1-i)) + 1
			left -= sizes[i]
		}
		sizes[n-1] = left
	}
	u := newUrn(sizes)
	m := newBitModel()
	prev := -1
	for i := range owner {
		skip := -1
		if mode == memberRuns {
			open, same := u.choice(prev)
			if open {
				same = d.bit(&m)
			}
			if same {
				owner[i] = uint8(prev)
				u.draw(prev)
				continue
			}
			skip = prev
		}
		total := u.total
		if skip >= 0 {
			total -= u.rem[skip]
		}
		b, cum := u.find(d.target(total), skip)
		d.take(cum, u.rem[b], total)
		owner[i] = uint8(b)
		u.draw(b)
		prev = b
	}
	return true
}
