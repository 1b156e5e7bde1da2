// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// angles are the sines and cosines of an offset, one of each per rotary pair.
type angles struct{ sin, cos []float32 }

// described is what the backend keeps of a block.
type described struct {
	angles *angles // of its offset, nil for none
	means  *means  // nil for none
	spans  bool    // the block has spans beside K and V
}

// means are those of a block, padded to rows of tiles; nil for none.
type means struct {
	k, v    []float32
	finiteV bool // v has no infinity and no NaN
}

// meanK and meanV return the means of a block, or nil.
func (d *described) meanK() []float32 {
	if d.means == nil {
		return nil
	}
	return d.means.k
}

func (d *described) meanV() []float32 {
	if d.means == nil {
		return nil
	}
	return d.means.v
}

type (
	entry = args.Entry[described]
	view  = args.View[described]
)

// table is the table of the backend. Its blocks are descriptors in this process: a view is a list
// of pointers to them.
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
	if err := b.open(context.Background(), backend.OpAttend); err != nil {
		return nil, err
	}
	t, err := args.NewTable[described](b, s)
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
	var k, v lastMean
	err := args.Set(t.Table, t.b.checker, at, blocks, func(w *args.BlockView[[]byte]) (described, error) {
		s := t.Shape()
		d := described{angles: t.angles(w.Offset)}
		d.spans = w.Pos.Given() || w.Count.Given() || w.Bias.Given() || w.MeanK.Given() || w.MeanV.Given()
		if w.MeanK.Given() || w.MeanV.Given() {
			d.means = &means{k: k.unpack(t.b, w.MeanKMem, s.HeadDim), v: v.unpack(t.b, w.MeanVMem, s.HeadDimV)}
			d.means.finiteV = v.finite
		}
		return d, nil
	})
	if err != nil {
		return fmt.Errorf("kvist/cpu: table: %w", err)
	}
	return nil
}

// lastMean is the last mean of some blocks that are set together: neighbours share one.
type lastMean struct {
	mem    []byte
	x      []float32
	finite bool
}

// unpack returns a stored mean as a padded row, nil for none.
func (l *lastMean) unpack(b *Backend, mem []byte, dim int) []float32 {
	if len(mem) == 0 {
		return nil
	}
	if len(l.mem) == 0 || &l.mem[0] != &mem[0] {
		x := make([]float32, b.kern.PadDim(dim))
		_ = quant.Mean(x[:dim], mem) // of the right length: it was checked
		*l = lastMean{mem, x, finiteAll(x)}
	}
	return l.x
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
