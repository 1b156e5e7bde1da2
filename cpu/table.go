// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// angles are the sines and cosines of an offset, one of each per rotary pair.
type angles struct{ sin, cos []float32 }

// described is what the backend keeps of a form of blocks.
type described struct {
	angles *angles // of its offset, nil for none
	k, v   sideForm
	noise  float32 // factor of the squares of the scales that scores use
	adds   bool    // scores have addends
	tiles  attend.TileForm
}

// sideForm is how the rows of a packed side are read.
type sideForm struct {
	bytes   int           // of the packed side
	scales  int           // where its scales begin
	unit    float32       // see attend.Unit
	rotated int           // 1 if the rows are in the rotated basis
	layout  attend.Layout // of unpacked rows
	cut     bool          // rows are unpacked to bytes
	planes  bool          // rows are in bit planes
	lookUp  bool          // inner products come from tables, if the list is long
}

type (
	entry = args.Entry
	form  = args.Form[described]
	view  = args.View[described]
)

// table is the table of the backend. Its blocks are descriptors in this process.
type table struct {
	*args.Table[described]
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
	t, err := args.NewTable[described](b, s)
	if err != nil {
		return nil, fmt.Errorf("kvist/cpu: table: %w", err)
	}
	made := &table{Table: t, b: b}
	t.Describe = made.describe
	if r := t.Shape().Rope; r != nil {
		made.freqs = r.Frequencies()
	}
	return made, nil
}

// Set puts blocks into the table; see backend.Table.
func (t *table) Set(at int, blocks ...backend.Block) error {
	if err := args.Set(t.Table, t.b.checker, at, blocks, nil); err != nil {
		return fmt.Errorf("kvist/cpu: table: %w", err)
	}
	return nil
}

// describe returns what every block of a form has in common.
func (t *table) describe(k *args.FormKey) described {
	kern, s := t.b.kern, t.Shape()
	d := described{angles: t.angles(k.Offset), adds: k.HasCount || k.HasBias || k.Tokens > 1,
		k: t.side(k.K, int(k.Rows), s.HeadDim, kern.LayoutK(k.K.Format)),
		v: t.side(k.V, int(k.Rows), s.HeadDimV, kern.LayoutV(k.V.Format))}
	if k.K.Format.Rotated() {
		d.noise = 0.5 * k.Noise
	}
	if k.K.Format == quant.U8 || k.K.Format.Nested() {
		d.noise /= d.k.unit * d.k.unit // Noise is relative to the row scale of quant.RowScales
	}
	if !d.adds {
		d.tiles = kern.TileForm(k.K, k.V, int(k.Rows), s.HeadDim, s.HeadDimV, d.noise)
	}
	return d
}

// side returns how rows of dim values are read.
func (t *table) side(c quant.Coding, rows, dim int, l attend.Layout) sideForm {
	if c == (quant.Coding{}) {
		return sideForm{} // there is no V
	}
	kern, f := t.b.kern, c.Format
	n := c.PackedBytes(rows, dim)
	s := sideForm{bytes: n, scales: n - c.ScaleBytes(rows), unit: attend.Unit(f, dim), rotated: index(f.Rotated()),
		layout: l, cut: kern.Bytes(f, dim), planes: f.Rotated() && f != quant.U8, lookUp: kern.Tables(f, dim)}
	return s
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
	a := &angles{make([]float32, len(t.freqs)), make([]float32, len(t.freqs))}
	for i, f := range t.freqs {
		s, c := math.Sincos(float64(offset) * f) // an angle needs float64, its sine does not
		a.sin[i], a.cos[i] = float32(s), float32(c)
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
