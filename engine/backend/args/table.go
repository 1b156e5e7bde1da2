// SPDX-License-Identifier: Apache-2.0

package args

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// chunk is the number of entries that a change of a table copies.
const chunk = 64

// Entry is a checked block of a table with what the backend keeps of it. It is immutable.
type Entry[E any] struct {
	Own      E // first, with the numbers of Block: what every call reads lies together
	KeysOnly bool
	backend.Block
}

// Table is the table of a backend: a list of entries that is copied in chunks when it changes after
// a view was taken. Owner is the backend. Keep is for the backend's own use.
type Table[E any] struct {
	Owner, Keep any

	shape  backend.Shape
	closed atomic.Bool

	mu     sync.Mutex
	chunks []*[chunk]*Entry[E]
	shared []bool // the chunk belongs to a view too
	n      int
	view   *View[E] // nil after a change
}

// View is an immutable state of a table.
type View[E any] struct {
	Table  *Table[E]
	chunks []*[chunk]*Entry[E]
	n      int
}

// NewTable returns an empty table.
//
// Errors: quant.ErrShape, quant.ErrUnsupported for a wrong shape.
func NewTable[E any](owner any, s backend.Shape) (*Table[E], error) {
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
	return &Table[E]{Owner: owner, shape: s}, nil
}

// Shape returns the shape of the table. Read only.
func (t *Table[E]) Shape() *backend.Shape { return &t.shape }

// Usable returns an error if the table was closed.
func (t *Table[E]) Usable() error {
	if t.closed.Load() {
		return fmt.Errorf("the table was closed: %w", quant.ErrClosed)
	}
	return nil
}

// Close closes the table and reports whether it was open.
func (t *Table[E]) Close() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Swap(true) {
		return false
	}
	t.chunks, t.shared, t.n, t.view = nil, nil, 0, nil
	return true
}

// Set checks blocks with c, lets own describe each, and puts them at indices at, at+1, ...
func Set[M, E any](t *Table[E], c Checker[M], at int, blocks []backend.Block,
	own func(w *BlockView[M]) (E, error)) error {
	entries := make([]*Entry[E], len(blocks)) // each of its own, so that the last use of one frees it
	var last Known
	var w BlockView[M]
	for i := range blocks {
		e := new(Entry[E])
		entries[i] = e
		e.Block, e.KeysOnly = blocks[i], KeysOnly(&blocks[i])
		err := c.Block(&w, &e.Block, &t.shape, &last)
		if err == nil {
			e.Own, err = own(&w)
		}
		if err != nil {
			return &backend.BlockError{Block: at + i, Err: err}
		}
	}
	return t.put(at, entries)
}

func (t *Table[E]) put(at int, entries []*Entry[E]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Usable(); err != nil {
		return err
	}
	if at < 0 || at > t.n {
		return fmt.Errorf("set from index %d of a table of %d: %w", at, t.n, quant.ErrShape)
	}
	if len(entries) > backend.MaxBlocks-at {
		return fmt.Errorf("%d blocks from index %d, of at most %d: %w", len(entries), at,
			backend.MaxBlocks, quant.ErrTooLarge)
	}
	for i := range entries {
		t.slot(at + i)[(at+i)%chunk] = entries[i]
	}
	t.n = max(t.n, at+len(entries))
	return nil
}

// slot returns the chunk of an index, to be changed. The lock is held.
func (t *Table[E]) slot(i int) *[chunk]*Entry[E] {
	t.view = nil
	k := i / chunk
	if k == len(t.chunks) {
		t.chunks, t.shared = append(t.chunks, new([chunk]*Entry[E])), append(t.shared, false)
	}
	if t.shared[k] {
		own := *t.chunks[k]
		t.chunks[k], t.shared[k] = &own, false
	}
	return t.chunks[k]
}

// Remove empties n indices from at on.
func (t *Table[E]) Remove(at, n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Usable(); err != nil {
		return err
	}
	if at < 0 || n < 0 || at > t.n-n {
		return fmt.Errorf("remove %d indices from %d on, of a table of %d: %w", n, at, t.n,
			quant.ErrShape)
	}
	for i := at; i < at+n; i++ {
		t.slot(i)[i%chunk] = nil
	}
	for t.n > 0 && t.chunks[(t.n-1)/chunk][(t.n-1)%chunk] == nil {
		t.n--
	}
	keep := (t.n + chunk - 1) / chunk
	clear(t.chunks[keep:])
	t.chunks, t.shared = t.chunks[:keep], t.shared[:keep]
	return nil
}

// View returns the table as it is now.
func (t *Table[E]) View() (*View[E], error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.Usable(); err != nil {
		return nil, err
	}
	if t.view == nil {
		t.view = &View[E]{Table: t, chunks: slices.Clone(t.chunks), n: t.n}
		for k := range t.shared {
			t.shared[k] = true
		}
	}
	return t.view, nil
}

// Shape returns the shape of the table. Read only.
func (v *View[E]) Shape() *backend.Shape { return &v.Table.shape }

// Len is one more than the largest index that holds a block.
func (v *View[E]) Len() int { return v.n }

// At returns the entry at an index, or nil.
func (v *View[E]) At(i int) *Entry[E] {
	if uint(i) >= uint(v.n) {
		return nil
	}
	return v.chunks[i/chunk][i%chunk]
}

// Block returns the block at an index; false if there is none.
func (v *View[E]) Block(i int) (backend.Block, bool) {
	if e := v.At(i); e != nil {
		return e.Block, true
	}
	return backend.Block{}, false
}

// ViewOf returns a view as the backend owner made it.
//
// Errors: quant.ErrShape for a view of another backend, or none; quant.ErrClosed.
func ViewOf[E any](owner any, v backend.View) (*View[E], error) {
	w, ok := v.(*View[E])
	if !ok || w == nil || w.Table.Owner != owner {
		return nil, fmt.Errorf("the view belongs to another backend: %w", quant.ErrShape)
	}
	if err := w.Table.Usable(); err != nil {
		return nil, err
	}
	return w, nil
}
