// SPDX-License-Identifier: Apache-2.0

package args

import (
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Entry is what a table keeps of one block: 28 bytes. What blocks have in common it names by an index
// into a list of the table, so that it is kept once: the kind of block in a form, the layer, head and means
// of a segment in a group, the buffers in a site. An entry without Form is empty.
type Entry struct {
	K, V, Pos         uint32 // low halves of the offsets in their buffers
	Form, Group, Site uint32
	Base              uint32 // position of the block's segment relative to that of the group
}

// FormKey is what blocks of one kind have in common.
type FormKey struct {
	Metric                              *frame.Metric
	KSeed, VSeed                        uint64
	Rows, Stride, Limit, Tokens, Offset int32
	Noise                               float32
	K, V                                quant.Coding
	KeysOnly, HasPos, HasCount, HasBias bool
}

// Place is a span in a buffer of the table: the index of the buffer, 0 for none, and the low half of the
// offset in it.
type Place struct{ Slab, Off uint32 }

// GroupKey is what the blocks of a segment and head have in common. The position of the segment of a
// block is Base + Entry.Base.
type GroupKey struct {
	Base          int64
	Layer, KVHead int32
	MeanK, MeanV  Place
}

// SiteKey is where the rows of a block lie: the buffers of the spans that most blocks have, and the spans
// that few have.
type SiteKey struct {
	K, V, Pos   uint32
	Count, Bias Place
}

// SlabKey is 4 GiB of a buffer.
type SlabKey struct {
	Buf  backend.Buffer
	High int64 // high half of offsets
}

// Forms, groups, sites and slabs as a table keeps them.
type (
	Form[O any] = item[FormKey, O]
	Group       = item[GroupKey, struct{}]
	Site        = item[SiteKey, struct{}]
)

func (k FormKey) hash() uint64 { // metrics are few: blocks that differ in nothing else may share a hash
	h := mix(k.KSeed, k.VSeed)
	h = mix(h, uint64(uint32(k.Rows))|uint64(uint32(k.Limit))<<32)
	h = mix(h, uint64(uint32(k.Offset))|uint64(uint32(k.Stride))<<32)
	h = mix(h, uint64(uint32(k.Tokens))|uint64(math.Float32bits(k.Noise+0))<<32) // -0 + 0 is 0
	return mix(h, uint64(k.K.Format)|uint64(k.K.Rule)<<8|uint64(k.K.Scale)<<16|
		uint64(k.V.Format)<<24|uint64(k.V.Rule)<<32|uint64(k.V.Scale)<<40)
}

func (k GroupKey) hash() uint64 {
	h := mix(uint64(k.Base), uint64(uint32(k.Layer))|uint64(uint32(k.KVHead))<<32)
	return mix(mix(h, k.MeanK.bits()), k.MeanV.bits())
}

func (k SiteKey) hash() uint64 {
	h := mix(uint64(k.K)|uint64(k.V)<<32, uint64(k.Pos))
	return mix(mix(h, k.Count.bits()), k.Bias.bits())
}

func (p Place) bits() uint64 { return uint64(p.Slab) | uint64(p.Off)<<32 }

// slabs are the buffers of a table.
type slabs struct {
	all  list[SlabKey] // index 0 is none
	refs []uint32
	free []uint32
	byID map[SlabKey]uint32
	last uint32
}

// take returns the place of a span that was checked, and counts it.
func (s *slabs) take(x backend.Span) Place {
	if x.Buf == nil {
		return Place{}
	}
	k := SlabKey{x.Buf, x.Off >> 32}
	if s.last == 0 || *s.all.at(s.last) != k {
		i, ok := s.byID[k]
		if !ok {
			i = s.add(k)
		}
		s.last = i
	}
	s.refs[s.last]++
	return Place{s.last, uint32(x.Off)}
}

func (s *slabs) add(k SlabKey) (i uint32) {
	if n := len(s.free); n > 0 {
		i = s.free[n-1]
		s.free = s.free[:n-1]
	} else {
		if len(s.refs) == 0 {
			s.all.change(0)
			s.refs, s.byID = append(s.refs, 0), make(map[SlabKey]uint32)
		}
		i = uint32(len(s.refs))
		s.refs = append(s.refs, 0)
	}
	*s.all.change(i) = k
	s.byID[k] = i
	return i
}

// drop counts one place less in a buffer. The table lets go of it with the last.
func (s *slabs) drop(i uint32) {
	if i == 0 {
		return
	}
	if s.refs[i]--; s.refs[i] > 0 {
		return
	}
	delete(s.byID, *s.all.at(i))
	*s.all.change(i) = SlabKey{}
	s.free = append(s.free, i)
	if s.last == i {
		s.last = 0
	}
}
