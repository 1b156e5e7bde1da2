// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// described is what the backend keeps of a block: the slot of its descriptor on the device, and the
// angles of its offset, nil for none.
type described struct {
	slot   *slot
	angles *angles
}

// slot is the index of a descriptor. A slot is written once, before a view shows it, and is taken
// again only when no table and no view holds its block any more.
type slot struct {
	at int32
	_  [28]byte // an object of its own for the garbage collector
}

// slots are the free ones. It is apart from the table, which a slot's cleanup must not hold.
type slots struct {
	mu   sync.Mutex
	free []int32
}

// giveBack frees a slot.
func (s *slots) giveBack(at int32) {
	s.mu.Lock()
	s.free = append(s.free, at)
	s.mu.Unlock()
}

// angles are the sines, then the cosines, of an offset's rotary pairs.
type angles []float32

type (
	entry = args.Entry[described]
	view  = args.View[described]
)

// table is the table of the backend. Descriptors lie in one array on the device.
type table struct {
	*args.Table[described]
	b     *Backend
	freqs []float64 // of the shape's Rope

	mu    sync.Mutex
	desc  []kernels.BlockDesc // as on the device, but for those from sent on and those of again
	sent  int
	again []int32           // slots below sent that were written again
	known map[int32]*angles // by offset; blocks with one offset share them
	slots *slots

	// use is held by calls that read mem, and taken alone to move it.
	use sync.RWMutex
	mem *buffer
}

const (
	descBytes = int64(unsafe.Sizeof(kernels.BlockDesc{}))
	// mostAngles bounds the offsets that a table remembers for later blocks.
	mostAngles = 1 << 10
	// firstSlots is the number of descriptors that a table has room for at first.
	firstSlots = 256
)

// NewTable returns an empty table; see backend.Backend.
func (b *Backend) NewTable(s backend.Shape) (backend.Table, error) {
	if err := b.open(context.Background(), backend.OpAttend); err != nil {
		return nil, err
	}
	t, err := args.NewTable[described](b, s)
	if err != nil {
		return nil, fmt.Errorf("kvist/cuda: table: %w", err)
	}
	made := &table{Table: t, b: b, slots: new(slots)}
	if r := t.Shape().Rope; r != nil {
		made.freqs = r.Frequencies()
	}
	t.Keep = made
	return made, nil
}

// tableOf returns the table of a view.
func tableOf(v *view) *table { return v.Table.Keep.(*table) }

// Set puts blocks into the table; see backend.Table.
func (t *table) Set(at int, blocks ...backend.Block) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := args.Set(t.Table, t.b.check(), at, blocks, t.describe)
	if err != nil {
		return fmt.Errorf("kvist/cuda: table: %w", err)
	}
	return nil
}

// describe takes a slot for a checked block. The lock is held.
func (t *table) describe(w *args.BlockView[uint64]) (described, error) {
	d := kernels.BlockDesc{K: w.KMem, V: w.VMem, Pos: w.PosMem, Count: w.CountMem, Bias: w.BiasMem,
		MeanK: w.MeanKMem, MeanV: w.MeanVMem, Base: w.Base, Rows: w.Rows,
		Stride: max(1, w.Stride), Limit: w.Limit, Tokens: max(1, w.Tokens), Noise: w.Noise,
		KFormat: uint8(w.K.Coding.Format), KForm: uint8(w.K.Coding.Scale),
		VFormat: uint8(w.V.Coding.Format), VForm: uint8(w.V.Coding.Scale)}
	s := &slot{at: t.take()}
	if int(s.at) < t.sent {
		t.again = append(t.again, s.at)
	}
	t.desc[s.at] = d
	runtime.AddCleanup(s, t.slots.giveBack, s.at)
	return described{s, t.angles(w.Offset)}, nil
}

// take returns a free slot.
func (t *table) take() int32 {
	t.slots.mu.Lock()
	defer t.slots.mu.Unlock()
	if n := len(t.slots.free); n > 0 {
		at := t.slots.free[n-1]
		t.slots.free = t.slots.free[:n-1]
		return at
	}
	t.desc = append(t.desc, kernels.BlockDesc{})
	return int32(len(t.desc) - 1)
}

// angles returns the sines and cosines of an offset. It reduces angles in float64.
func (t *table) angles(offset int32) *angles {
	if offset == 0 || len(t.freqs) == 0 {
		return nil
	}
	if a := t.known[offset]; a != nil {
		return a
	}
	if len(t.known) >= mostAngles || t.known == nil {
		t.known = make(map[int32]*angles)
	}
	a := make(angles, 2*len(t.freqs))
	for i, f := range t.freqs {
		s, c := math.Sincos(float64(offset) * f)
		a[i], a[len(t.freqs)+i] = float32(s), float32(c)
	}
	t.known[offset] = &a
	return &a
}

// Remove empties indices; see backend.Table.
func (t *table) Remove(at, n int) error {
	if err := t.Table.Remove(at, n); err != nil {
		return fmt.Errorf("kvist/cuda: table: %w", err)
	}
	return nil
}

// View returns the table as it is now, with all of its descriptors on the device; see
// backend.Table.
func (t *table) View() (backend.View, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.Usable()
	if err == nil {
		err = t.flush()
	}
	if err != nil {
		return nil, fmt.Errorf("kvist/cuda: table: %w", err)
	}
	v, err := t.Table.View()
	if err != nil {
		return nil, fmt.Errorf("kvist/cuda: table: %w", err)
	}
	return v, nil
}

// flush sends descriptors that the device does not have. No view shows them yet, so that calls that
// run do not read them. The lock is held.
func (t *table) flush() error {
	if err := t.grow(); err != nil {
		return err
	}
	for _, at := range t.again {
		if err := t.send(t.mem, int(at), int(at)+1); err != nil {
			return err
		}
	}
	t.again = t.again[:0]
	if t.sent < len(t.desc) {
		if err := t.send(t.mem, t.sent, len(t.desc)); err != nil {
			return err
		}
	}
	t.sent = len(t.desc)
	return nil
}

// send uploads descriptors [from, to).
func (t *table) send(mem *buffer, from, to int) error {
	part := t.desc[from:to]
	raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(part))), len(part)*int(descBytes))
	return mem.Upload(int64(from)*descBytes, raw)
}

// grow makes room on the device. Running calls end before the descriptors move.
func (t *table) grow() error {
	room := int64(0)
	if t.mem != nil {
		room = t.mem.n / descBytes
	}
	if int64(len(t.desc)) <= room {
		return nil
	}
	n := max(firstSlots, 2*room, int64(len(t.desc)))
	mem, err := t.b.Alloc(n * descBytes)
	if err != nil {
		return err
	}
	if err := t.send(mem.(*buffer), 0, len(t.desc)); err != nil {
		return errors.Join(err, mem.Free())
	}
	t.use.Lock()
	old := t.mem
	t.mem, t.sent, t.again = mem.(*buffer), len(t.desc), t.again[:0]
	t.use.Unlock()
	if old == nil {
		return nil
	}
	return old.Free()
}

// Close closes the table; see backend.Table.
func (t *table) Close() error {
	if !t.Table.Close() {
		return nil
	}
	t.use.Lock()
	defer t.use.Unlock()
	mem := t.mem
	t.mem = nil
	if mem == nil || t.b.closed.Load() {
		return nil
	}
	return mem.Free()
}

// alive returns an error if a buffer of a block was freed.
func alive(e *entry) error {
	for _, s := range []backend.Span{e.K.Data, e.V.Data, e.Pos, e.Count, e.Bias, e.MeanK, e.MeanV} {
		if buf, ok := s.Buf.(*buffer); ok && buf.freed.Load() {
			return fmt.Errorf("a buffer was freed: %w", quant.ErrClosed)
		}
	}
	return nil
}
