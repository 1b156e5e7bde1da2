// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// Index holds coded rows by id, and searches them. All methods may be called from any number of goroutines:
// searches read the rows as they were when they started and never wait for changes; changes wait for each
// other.
type Index struct {
	*coding
	state   atomic.Pointer[state]
	writing sync.Mutex // held by changes
	release func() error
	closed  atomic.Bool
}

func newIndex(c *coding) *Index {
	x := &Index{coding: c}
	x.state.Store(&state{ids: &idMap{}})
	return x
}

// Dim returns the number of values of a row.
func (x *Index) Dim() int { return x.coding.Dim }

// Metric returns the metric.
func (x *Index) Metric() Metric { return x.coding.Metric }

// Len returns the number of rows.
func (x *Index) Len() int { return x.state.Load().rows }

// Add codes rows and adds them under their ids; nil ids are the numbers from Len() on. Rows without a
// direction, which equal the mean of the calibration, are coded too.
//
// Nothing is added if any of it fails: quant.ErrShape for lengths that do not fit or an id that occurs twice
// or is there already (*IDError), quant.ErrRange for values that are not finite or beyond 1e15,
// quant.ErrTooLarge beyond 2^31-16 rows, quant.ErrClosed, the error of ctx.
func (x *Index) Add(ctx context.Context, ids []uint64, rows quant.Rows) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.closed.Load() {
		return fmt.Errorf("kvist/vectors: add: %w", quant.ErrClosed)
	}
	if rows.Dim != x.Dim() || rows.Validate() != nil {
		return fmt.Errorf("kvist/vectors: add: %d values in rows of %d, the index has rows of %d: %w",
			len(rows.Data), rows.Dim, x.Dim(), quant.ErrShape)
	}
	n, old := rows.Len(), x.state.Load()
	if ids != nil && len(ids) != n {
		return fmt.Errorf("kvist/vectors: add: %d ids for %d rows: %w", len(ids), n, quant.ErrShape)
	}
	if old.rows+n > maxRows {
		return fmt.Errorf("kvist/vectors: add: %d rows, an index holds %d: %w", old.rows+n, maxRows, quant.ErrTooLarge)
	}
	if err := checkFinite("add", rows); err != nil {
		return err
	}
	if ids == nil {
		ids = make([]uint64, n)
		for i := range ids {
			ids[i] = uint64(old.rows + i)
		}
	}
	if err := old.checkNew(ids); err != nil {
		return err
	}
	tiles, err := x.code(ctx, rows)
	if err != nil {
		return err
	}
	next := old.with(x.coding, ids, tiles)
	m := next.ids
	m.mu.Lock()
	defer m.mu.Unlock()
	if !next.dense {
		first := old.rows
		if old.dense {
			first = 0
		}
		m.add(next, first)
	}
	x.state.Store(next)
	return nil
}

// checkNew reports an id that is there already or given twice.
func (s *state) checkNew(ids []uint64) error {
	if s.rows == 0 || s.dense {
		if ascending(ids, s.rows) {
			return nil
		}
	}
	seen := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		if _, ok := s.ids.find(s, id); ok || seen[id] {
			return &IDError{ID: id, Twice: true}
		}
		seen[id] = true
	}
	return nil
}

// code codes rows, tile by tile, on all processors.
func (x *Index) code(ctx context.Context, rows quant.Rows) ([]*coded, error) {
	n := (rows.Len() + trellis.TileRows - 1) / trellis.TileRows
	out := make([]*coded, n)
	err := parallelN(ctx, n, workersOf(0), func() func(i int) error {
		w := &coder{coding: x.coding}
		return func(i int) error {
			lo, hi := i*trellis.TileRows, min(rows.Len(), (i+1)*trellis.TileRows)
			c, err := w.tile(rows.Data[lo*rows.Dim : hi*rows.Dim])
			out[i] = c
			return err
		}
	})
	return out, err
}

// Remove removes the rows of ids. The last rows take their places.
//
// Nothing is removed if any id is unknown or occurs twice: *IDError, which matches quant.ErrShape. Also
// quant.ErrClosed.
func (x *Index) Remove(ids ...uint64) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.closed.Load() {
		return fmt.Errorf("kvist/vectors: remove: %w", quant.ErrClosed)
	}
	old := x.state.Load()
	at := make([]int, len(ids))
	for i, id := range ids {
		var ok bool
		if at[i], ok = old.ids.find(old, id); !ok {
			return &IDError{ID: id}
		}
	}
	slices.Sort(at)
	for i := 1; i < len(at); i++ {
		if at[i] == at[i-1] {
			return &IDError{ID: old.id(at[i]), Twice: true}
		}
	}
	if len(at) == 0 {
		return nil
	}
	next, moved := old.without(x.coding, at)
	m := next.ids
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case next.dense:
	case old.dense:
		m.add(next, 0)
	default:
		for _, row := range at {
			m.remove(old, row)
		}
		for _, move := range moved {
			m.table[m.entry(old.id(move[0]), move[0])] = uint32(move[1]) + 1
		}
	}
	x.state.Store(next)
	return nil
}

// find returns the newest state and the row that an id has in it.
func (x *Index) find(id uint64) (s *state, row int, err error) {
	m := x.state.Load().ids
	m.mu.RLock()
	defer m.mu.RUnlock()
	s = x.state.Load()
	row, ok := m.find(s, id)
	if !ok {
		return nil, 0, &IDError{ID: id}
	}
	return s, row, nil
}

// Has reports whether there is a row with an id.
func (x *Index) Has(id uint64) bool {
	_, _, err := x.find(id)
	return err == nil
}

// Close releases the file that Open mapped. The index must not be used afterwards, and no search may run.
func (x *Index) Close() error {
	x.writing.Lock()
	defer x.writing.Unlock()
	if x.closed.Swap(true) || x.release == nil {
		return nil
	}
	return x.release()
}

// IDError says which id is unknown or not new. It matches quant.ErrShape.
type IDError struct {
	ID    uint64
	Twice bool // it is there already, or was given twice
}

// Error names the id.
func (e *IDError) Error() string {
	if e.Twice {
		return fmt.Sprintf("kvist/vectors: id %d occurs twice", e.ID)
	}
	return fmt.Sprintf("kvist/vectors: no row has id %d", e.ID)
}

// Unwrap returns quant.ErrShape.
func (e *IDError) Unwrap() error { return quant.ErrShape }

// Stats returns the figures of the index at the time of the call.
func (x *Index) Stats() Stats {
	s, c := x.state.Load(), x.coding
	st := Stats{Rows: s.rows, Dim: c.Dim, RowBytes: c.rowBytes(), SharedBytes: c.sharedBytes(),
		Head: c.parts[0].Dim(), ISA: c.scan.ISA(), Added: s.stats.rows, Bounded: s.stats.bounded,
		Calibrated: c.params.Error, Error: c.params.Error, Drift: 1}
	if !s.dense {
		st.IDBytes = 8 * s.rows
	}
	for _, b := range c.Cells {
		st.Bits[b] += 16
	}
	st.Bits[0] += max(0, c.Dim-c.comps())
	if n := float64(s.stats.rows); n > 0 {
		st.Error = s.stats.damage / n
		if st.Calibrated > 0 {
			st.Drift = st.Error / st.Calibrated
		}
		if !c.Rotated {
			st.Spread = s.stats.energy / n
		}
	}
	return st
}
