// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"

	"github.com/kvist-project/kvist/quant"
)

// Shape is what the blocks of a table have in common.
type Shape struct {
	HeadDim, HeadDimV int
	// Rope is the rotary embedding in K; needed only for blocks with an Offset. The table keeps a
	// copy.
	Rope *quant.Rope
}

// MaxBlocks bounds the length of a table.
const MaxBlocks = 1 << 28

// Table is a backend's resident list of blocks. A block is checked and described once, when it is
// set; Attend then only follows the lists of its queries. What a call costs does not depend on what
// else the table holds.
//
// All methods are safe for concurrent use with each other and with calls that use views.
type Table interface {
	// Set puts blocks at indices at, at+1, ... It replaces what is there and may run on past the
	// end, so at is from 0 to the length of the table. Nothing is set if one block is wrong.
	//
	// Errors: *BlockError wrapping quant.ErrShape, quant.ErrUnsupported or quant.ErrClosed;
	// quant.ErrShape for a wrong index; quant.ErrTooLarge beyond MaxBlocks.
	Set(at int, blocks ...Block) error
	// Remove empties n indices from at on. The table is shortened by the empty ones at its end. No
	// list may name an empty index.
	//
	// Errors: quant.ErrShape for indices beyond the table, quant.ErrClosed.
	Remove(at, n int) error
	// View returns the table as it is now. A view never changes. View returns the same one, and
	// allocates nothing, until the table changes.
	//
	// Errors: quant.ErrClosed, quant.ErrTooLarge.
	View() (View, error)
	// Close frees the table. Calls that use its views must have returned; later ones get
	// quant.ErrClosed. Closing again does nothing.
	Close() error
}

// View is an immutable state of a table. Only the backend that made it can use it. A buffer of a
// block must not be freed while a call uses a view that holds the block; a later call that lists
// the block gets quant.ErrClosed.
type View interface {
	// Len is one more than the largest index that holds a block.
	Len() int
	// Block returns the block at an index; false if the index is empty or beyond Len.
	Block(i int) (Block, bool)
}

// AttendBlocks is Attend over a temporary table of blocks. For lists that are used once.
//
// Errors: as Table.Set and Attend.
func AttendBlocks(ctx context.Context, b Backend, q *Queries, rope *quant.Rope, blocks []Block,
	to Attention) error {
	return with(b, q, rope, blocks, func(v View) error { return b.Attend(ctx, q, v, to) })
}

// RelevanceBlocks is Relevance over a temporary table of blocks.
//
// Errors: as Table.Set and Relevance.
func RelevanceBlocks(ctx context.Context, b Backend, q *Queries, rope *quant.Rope, lse []float32,
	blocks []Block, rel *RelevanceOut) error {
	return with(b, q, rope, blocks, func(v View) error { return b.Relevance(ctx, q, lse, v, rel) })
}

// WeighBlocks is Weigh over a temporary table of blocks. w is b.
//
// Errors: as Table.Set and Weigh.
func WeighBlocks(ctx context.Context, b Backend, w Weigher, q *Queries, rope *quant.Rope,
	blocks []Block, rel *RelevanceOut) error {
	return with(b, q, rope, blocks, func(v View) error { return w.Weigh(ctx, q, v, rel) })
}

// with calls f with a view of a temporary table.
func with(b Backend, q *Queries, rope *quant.Rope, blocks []Block, f func(v View) error) (err error) {
	if q == nil {
		q = &Queries{}
	}
	t, err := b.NewTable(Shape{HeadDim: q.HeadDim, HeadDimV: q.HeadDimV, Rope: rope})
	if err != nil {
		return err
	}
	defer func() {
		if e := t.Close(); err == nil {
			err = e
		}
	}()
	if err := t.Set(0, blocks...); err != nil {
		return err
	}
	v, err := t.View()
	if err != nil {
		return err
	}
	return f(v)
}
