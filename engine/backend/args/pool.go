// SPDX-License-Identifier: Apache-2.0

package args

import "slices"

// chunk is the number of elements that a change of a list copies.
const chunk = 64

// list is a list that is copied in chunks when it changes after a view was taken.
type list[T any] struct {
	chunks []*[chunk]T
	shared []bool      // the chunk belongs to a view too
	frozen []*[chunk]T // what the last view holds, nil after a change
}

// at returns an element, to be read.
func (l *list[T]) at(i uint32) *T { return &l.chunks[i/chunk][i%chunk] }

// change returns an element, to be changed. i is at most one chunk behind the others.
func (l *list[T]) change(i uint32) *T {
	l.frozen = nil
	k := int(i / chunk)
	if k == len(l.chunks) {
		l.chunks, l.shared = append(l.chunks, new([chunk]T)), append(l.shared, false)
	}
	if l.shared[k] {
		own := *l.chunks[k]
		l.chunks[k], l.shared[k] = &own, false
	}
	return &l.chunks[k][i%chunk]
}

// cut forgets the chunks behind the first n elements.
func (l *list[T]) cut(n int) {
	keep := (n + chunk - 1) / chunk
	if keep == len(l.chunks) {
		return
	}
	l.frozen = nil
	clear(l.chunks[keep:])
	l.chunks, l.shared = l.chunks[:keep], l.shared[:keep]
}

// freeze returns the list as it is now.
func (l *list[T]) freeze() []*[chunk]T {
	if l.frozen == nil {
		l.frozen = slices.Clone(l.chunks)
		for k := range l.shared {
			l.shared[k] = true
		}
	}
	return l.frozen
}

// hashed is a key of a pool. Equal keys have equal hashes.
type hashed interface {
	comparable
	hash() uint64
}

// item is a value of a pool with what was made of it.
type item[K hashed, O any] struct {
	Key K
	Own O
}

// pool holds values that entries share, each once. Entries hold their indices; index 0 is none. A value
// goes when the last entry that holds it does.
type pool[K hashed, O any] struct {
	items list[item[K, O]]
	refs  []uint32 // by index
	free  []uint32
	table []uint32 // indices by hash, open addressing; 0 is an empty place
	live  int
	last  uint32 // the index that was taken last, or 0
}

// take returns the index of a value and counts one more entry that holds it. own makes what goes with a
// new value.
func (p *pool[K, O]) take(k K, own func(*K) O) uint32 {
	if i := p.last; i != 0 && p.items.at(i).Key == k {
		p.refs[i]++
		return i
	}
	if 4*(p.live+1) > 3*len(p.table) {
		p.rehash()
	}
	at := p.place(k)
	i := p.table[at]
	if i == 0 {
		i = p.add(k, own)
		p.table[at] = i
	}
	p.refs[i]++
	p.last = i
	return i
}

// place returns the place of a value in the table, or the empty one where it belongs.
func (p *pool[K, O]) place(k K) int {
	mask := len(p.table) - 1
	at := int(k.hash()) & mask
	for p.table[at] != 0 && p.items.at(p.table[at]).Key != k {
		at = (at + 1) & mask
	}
	return at
}

func (p *pool[K, O]) add(k K, own func(*K) O) (i uint32) {
	if n := len(p.free); n > 0 {
		i = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		if len(p.refs) == 0 {
			p.items.change(0)
			p.refs = append(p.refs, 0)
		}
		i = uint32(len(p.refs))
		p.refs = append(p.refs, 0)
	}
	x := p.items.change(i)
	x.Key = k
	if own != nil {
		x.Own = own(&x.Key)
	}
	p.live++
	return i
}

// drop counts one entry less that holds a value.
func (p *pool[K, O]) drop(i uint32) (k K, gone bool) {
	if i == 0 {
		return k, false
	}
	if p.refs[i]--; p.refs[i] > 0 {
		return k, false
	}
	k = p.items.at(i).Key
	p.remove(p.place(k))
	*p.items.change(i) = item[K, O]{}
	p.free = append(p.free, i)
	p.live--
	if p.last == i {
		p.last = 0
	}
	return k, true
}

// remove empties a place of the table and moves up what would no longer be found.
func (p *pool[K, O]) remove(at int) {
	mask := len(p.table) - 1
	for next := (at + 1) & mask; p.table[next] != 0; next = (next + 1) & mask {
		home := int(p.items.at(p.table[next]).Key.hash()) & mask
		if (next-home)&mask >= (next-at)&mask {
			p.table[at] = p.table[next]
			at = next
		}
	}
	p.table[at] = 0
}

// rehash makes a table of twice the size that the values need.
func (p *pool[K, O]) rehash() {
	size := 8
	for size < 2*(p.live+1) {
		size *= 2
	}
	old := p.table
	p.table = make([]uint32, size)
	for _, i := range old {
		if i != 0 {
			p.table[p.place(p.items.at(i).Key)] = i
		}
	}
}

// mix folds a number into a hash.
func mix(h, x uint64) uint64 {
	h = (h ^ x) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}
