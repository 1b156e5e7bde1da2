// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Table is the table of a backend: lists that are copied in chunks when they change after a view was
// taken. Owner is the backend. Keep is for the backend's own use.
type Table[O any] struct {
	Owner, Keep any
	// Describe makes what the backend keeps of a form; nil: nothing.
	Describe func(k *FormKey) O
	// Drop is called with the slot of every block that leaves the table; nil: it is not.
	Drop func(slot uint32)

	shape  backend.Shape
	closed atomic.Bool

	mu      sync.Mutex
	entries list[Entry]
	slots   list[uint32] // by index, if the backend has slots
	n       int
	forms   pool[FormKey, O]
	groups  pool[GroupKey, struct{}]
	sites   pool[SiteKey, struct{}]
	slabs   slabs
	staged  []Entry
	given   []uint32 // slots of the staged entries
	view    *View[O] // nil after a change
}

// View is an immutable state of a table.
type View[O any] struct {
	Table   *Table[O]
	entries []*[chunk]Entry
	slots   []*[chunk]uint32
	n       int
	forms   []*[chunk]Form[O]
	groups  []*[chunk]Group
	sites   []*[chunk]Site
	slabs   []*[chunk]SlabKey
}

// mostStaged bounds the memory that a table keeps for the next change.
const mostStaged = 1 << 10

// NewTable returns an empty table.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for a wrong shape.
func NewTable[O any](owner any, s backend.Shape) (*Table[O], error) {
	if s.HeadDim < 1 || s.HeadDim > quant.MaxDim || s.HeadDimV < 1 || s.HeadDimV > quant.MaxDim {
		return nil, fmt.Errorf("head_dim %d, head_dim_v %d, want 1 to %d: %w", s.HeadDim, s.HeadDimV,
			quant.MaxDim, quant.ErrShape)
	}
	if s.Rope != nil {
		if err := s.Rope.Validate(s.HeadDim); err != nil {
			return nil, err
		}
		r := *s.Rope
		r.InvFreq = slices.Clone(r.InvFreq)
		s.Rope = &r
	}
	return &Table[O]{Owner: owner, shape: s}, nil
}

// Shape returns the shape of the table. Read only.
func (t *Table[O]) Shape() *backend.Shape { return &t.shape }

// Usable returns an error if the table was closed.
func (t *Table[O]) Usable() error {
	if t.closed.Load() {
		return fmt.Errorf("the table was closed: %w", quant.ErrClosed)
	}
	return nil
}

// Close closes the table and reports whether it was open.
func (t *Table[O]) Close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Swap(true) {
		return false
	}
	t.entries, t.slots, t.n, t.view, t.staged, t.given = list[Entry]{}, list[uint32]{}, 0, nil, nil, nil
	t.forms, t.groups = pool[FormKey, O]{}, pool[GroupKey, struct{}]{}
	t.sites, t.slabs = pool[SiteKey, struct{}]{}, slabs{}
	return true
}

// Set checks blocks with c and puts them at indices at, at+1, ... slot, if not nil, returns what View.Slot
// holds of a checked block; it is given in every call for a table or in none.
func Set[M, O any](t *Table[O], c Checker[M], at int, blocks []backend.Block,
	slot func(w *BlockView[M]) uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.fits(at, len(blocks)); err != nil {
		return err
	}
	var last Known
	var w BlockView[M]
	t.staged, t.given = t.staged[:0], t.given[:0]
	for i := range blocks {
		if err := c.Block(&w, &blocks[i], &t.shape, &last); err != nil {
			for j := range t.staged {
				t.drop(&t.staged[j])
			}
			for _, s := range t.given {
				t.free(s)
			}
			return &backend.BlockError{Block: at + i, Err: err}
		}
		t.staged = append(t.staged, t.take(&blocks[i]))
		if slot != nil {
			t.given = append(t.given, slot(&w))
		}
	}
	for i := range t.staged {
		e := t.entries.change(uint32(at + i))
		old := *e
		*e = t.staged[i]
		if slot != nil {
			s := t.slots.change(uint32(at + i))
			if old.Form != 0 {
				t.free(*s)
			}
			*s = t.given[i]
		}
		t.drop(&old)
	}
	if cap(t.staged) > mostStaged {
		t.staged, t.given = nil, nil
	}
	if len(blocks) > 0 {
		t.n, t.view = max(t.n, at+len(blocks)), nil
	}
	return nil
}

// fits returns an error unless n blocks can be set from an index on.
func (t *Table[O]) fits(at, n int) error {
	if err := t.Usable(); err != nil {
		return err
	}
	if at < 0 || at > t.n {
		return fmt.Errorf("set from index %d of a table of %d: %w", at, t.n, quant.ErrShape)
	}
	if n > backend.MaxBlocks-at {
		return fmt.Errorf("%d blocks from index %d, of at most %d: %w", n, at, backend.MaxBlocks, quant.ErrTooLarge)
	}
	return nil
}

// take describes a block that was checked.
func (t *Table[O]) take(b *backend.Block) Entry {
	k, v, pos := t.slabs.take(b.K.Data), t.slabs.take(b.V.Data), t.slabs.take(b.Pos)
	const half = 1 << 32
	return Entry{K: k.Off, V: v.Off, Pos: pos.Off, Base: uint32(b.Base),
		Form: t.forms.take(FormKey{Metric: b.Metric, KSeed: b.K.Seed, VSeed: b.V.Seed, Rows: b.Rows,
			Stride: b.Stride, Limit: b.Limit, Tokens: b.Tokens, Offset: b.Offset, Noise: b.Noise,
			K: b.K.Coding, V: b.V.Coding, KeysOnly: KeysOnly(b), HasPos: b.Pos.Given(),
			HasCount: b.Count.Given(), HasBias: b.Bias.Given()}, t.Describe),
		Group: t.groups.take(GroupKey{Base: b.Base &^ (half - 1), Layer: b.Layer, KVHead: b.KVHead,
			MeanK: t.slabs.take(b.MeanK), MeanV: t.slabs.take(b.MeanV)}, nil),
		Site: t.sites.take(SiteKey{K: k.Slab, V: v.Slab, Pos: pos.Slab, Count: t.slabs.take(b.Count),
			Bias: t.slabs.take(b.Bias)}, nil)}
}

// drop lets go of what an entry names.
func (t *Table[O]) drop(e *Entry) {
	if e.Form == 0 {
		return
	}
	g, s := t.groups.items.at(e.Group).Key, t.sites.items.at(e.Site).Key
	for _, slab := range [...]uint32{s.K, s.V, s.Pos, s.Count.Slab, s.Bias.Slab, g.MeanK.Slab, g.MeanV.Slab} {
		t.slabs.drop(slab)
	}
	t.forms.drop(e.Form)
	t.groups.drop(e.Group)
	t.sites.drop(e.Site)
}

// free tells the backend that the block of a slot left.
func (t *Table[O]) free(slot uint32) {
	if t.Drop != nil {
		t.Drop(slot)
	}
}

// Remove empties n indices from at on.
func (t *Table[O]) Remove(at, n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Usable(); err != nil {
		return err
	}
	if at < 0 || n < 0 || at > t.n-n {
		return fmt.Errorf("remove %d indices from %d on, of a table of %d: %w", n, at, t.n, quant.ErrShape)
	}
	for i := at; i < at+n; i++ {
		e := t.entries.change(uint32(i))
		old := *e
		*e = Entry{}
		t.drop(&old)
		if old.Form != 0 && len(t.slots.chunks) > 0 {
			t.free(*t.slots.at(uint32(i)))
		}
	}
	for t.n > 0 && t.entries.at(uint32(t.n-1)).Form == 0 {
		t.n--
	}
	t.entries.cut(t.n)
	if len(t.slots.chunks) > 0 {
		t.slots.cut(t.n)
	}
	if n > 0 {
		t.view = nil
	}
	return nil
}

// View returns the table as it is now.
func (t *Table[O]) View() (*View[O], error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Usable(); err != nil {
		return nil, err
	}
	if t.view == nil {
		t.view = &View[O]{Table: t, n: t.n, entries: t.entries.freeze(), slots: t.slots.freeze(), forms: t.forms.items.freeze(),
			groups: t.groups.items.freeze(), sites: t.sites.items.freeze(), slabs: t.slabs.all.freeze()}
	}
	return t.view, nil
}

// Shape returns the shape of the table. Read only.
func (v *View[O]) Shape() *backend.Shape { return &v.Table.shape }

// Len is one more than the largest index that holds a block.
func (v *View[O]) Len() int { return v.n }

// At returns the entry at an index, or nil. Read only.
func (v *View[O]) At(i int) *Entry {
	if uint(i) >= uint(v.n) {
		return nil
	}
	if e := &v.entries[i/chunk][i%chunk]; e.Form != 0 {
		return e
	}
	return nil
}

// Slot returns what the backend's function gave for the block at an index.
func (v *View[O]) Slot(i int) uint32 { return v.slots[i/chunk][i%chunk] }

// Form, Group, Site and Slab return what an entry names. Read only.
func (v *View[O]) Form(i uint32) *Form[O] { return &v.forms[i/chunk][i%chunk] }

// Group returns what the blocks of a segment and head share.
func (v *View[O]) Group(i uint32) *Group { return &v.groups[i/chunk][i%chunk] }

// Site returns where the rows of some blocks lie.
func (v *View[O]) Site(i uint32) *Site { return &v.sites[i/chunk][i%chunk] }

// Slab returns a buffer.
func (v *View[O]) Slab(i uint32) *SlabKey { return &v.slabs[i/chunk][i%chunk] }

// Rows returns the rows of the block at an index, 0 if there is none.
func (v *View[O]) Rows(i int) int32 {
	if e := v.At(i); e != nil {
		return v.Form(e.Form).Key.Rows
	}
	return 0
}

// Block returns the block at an index; false if there is none.
func (v *View[O]) Block(i int) (backend.Block, bool) {
	e := v.At(i)
	if e == nil {
		return backend.Block{}, false
	}
	f, g, s := &v.Form(e.Form).Key, &v.Group(e.Group).Key, &v.Site(e.Site).Key
	rows, shape := int(f.Rows), &v.Table.shape
	return backend.Block{Layer: g.Layer, KVHead: g.KVHead, Rows: f.Rows, Base: g.Base + int64(e.Base),
		Stride: f.Stride, Limit: f.Limit, Tokens: f.Tokens, Offset: f.Offset, Noise: f.Noise, Metric: f.Metric,
		K:     backend.Side{Coding: f.K, Seed: f.KSeed, Data: v.packed(Place{s.K, e.K}, f.K, rows, shape.HeadDim)},
		V:     backend.Side{Coding: f.V, Seed: f.VSeed, Data: v.packed(Place{s.V, e.V}, f.V, rows, shape.HeadDimV)},
		Pos:   v.span(Place{s.Pos, e.Pos}, 2*rows),
		Count: v.span(s.Count, 2*rows), Bias: v.span(s.Bias, 4*rows),
		MeanK: v.span(g.MeanK, frame.MeanBytes(shape.HeadDim)),
		MeanV: v.span(g.MeanV, frame.MeanBytes(shape.HeadDimV))}, true
}

// packed returns the span of a packed side.
func (v *View[O]) packed(p Place, c quant.Coding, rows, dim int) backend.Span {
	if p.Slab == 0 {
		return backend.Span{}
	}
	return v.span(p, c.PackedBytes(rows, dim))
}

// span returns n bytes at a place; the zero Span for none.
func (v *View[O]) span(p Place, n int) backend.Span {
	if p.Slab == 0 {
		return backend.Span{}
	}
	s := v.Slab(p.Slab)
	return backend.Span{Buf: s.Buf, Off: s.High<<32 + int64(p.Off), Len: int64(n)}
}

// ViewOf returns a view as the backend owner made it.
//
// Errors: quant.ErrShape for a view of another backend, or none; quant.ErrClosed.
func ViewOf[O any](owner any, v backend.View) (*View[O], error) {
	w, ok := v.(*View[O])
	if !ok || w == nil || w.Table.Owner != owner {
		return nil, fmt.Errorf("the view belongs to another backend: %w", quant.ErrShape)
	}
	if err := w.Table.Usable(); err != nil {
		return nil, err
	}
	return w, nil
}
