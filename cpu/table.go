// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
)

// angles are the sines and cosines of an offset, one of each per rotary pair.
type angles struct{ sin, cos []float64 }

// entry is a block of a table with the angles of its offset, nil for none.
type (
	entry = args.Entry[*angles]
	view  = args.View[*angles]
)

// table is the table of the backend. Its blocks are descriptors in this process: a view is a list
// of pointers to them.
type table struct {
	*args.Table[*angles]
	b     *Backend
	freqs []float64 // of the shape's Rope

	mu    sync.Mutex
	known map[int32]*angles // by offset; blocks with one offset share them
}

// mostAngles bounds the offsets that a table remembers for later blocks.
const mostAngles = 1 << 10

// NewTable returns an empty table; see backend.Backend.
func (b *Backend) NewTable(s backend.Shape) (backend.Table, error) {
	turn, err := b.open(context.Background(), backend.OpAttend)
	if err != nil {
		return nil, err
	}
	defer b.leave(turn)
	t, err := args.NewTable[*angles](b, s)
	if err != nil {
		return nil, fmt.Errorf("kvist/cpu: table: %w", err)
	}
	made := &table{Table: t, b: b}
	if r := t.Shape().Rope; r != nil {
		made.freqs = r.Frequencies()
	}
	return made, nil
}

// Set puts blocks into the table; see backend.Table.
func (t *table) Set(at int, blocks ...backend.Block) error {
	err := args.Set(t.Table, t.b.checker, at, blocks, func(w *args.BlockView[[]byte]) (*angles, error) {
		return t.angles(w.Offset), nil
	})
	if err != nil {
		return fmt.Errorf("kvist/cpu: table: %w", err)
	}
	return nil
}

// angles returns the sines and cosines of an offset.
func (t *table) angles(offset int32) *angles {
	if offset == 0 || len(t.freqs) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.known[offset]; a != nil {
		return a
	}
	if len(t.known) >= mostAngles || t.known == nil {
		t.known = make(map[int32]*angles)
	}
	a := &angles{make([]float64, len(t.freqs)), make([]float64, len(t.freqs))}
	for i, f := range t.freqs {
		a.sin[i], a.cos[i] = math.Sincos(float64(offset) * f)
	}
	t.known[offset] = a
	return a
}

// Remove empties indices; see backend.Table.
func (t *table) Remove(at, n int) error {
	if err := t.Table.Remove(at, n); err != nil {
		return fmt.Errorf("kvist/cpu: table: %w", err)
	}
	return nil
}

// View returns the table as it is now; see backend.Table.
func (t *table) View() (backend.View, error) {
	v, err := t.Table.View()
	if err != nil {
		return nil, fmt.Errorf("kvist/cpu: table: %w", err)
	}
	return v, nil
}

// Close closes the table; see backend.Table.
func (t *table) Close() error {
	t.Table.Close()
	return nil
}
