// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"
	"weak"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
)

// described is what the backend keeps of a form of blocks.
type described struct {
	angles *angles // of its offset, nil for none
}

// slots gives out the indices of descriptors on the device. A slot is written once, before a view shows it,
// and is taken again only when no view holds its block any more. Views are counted; a slot is shown by
// those after the number at which it was taken, up to the number at which its block left.
type slots struct {
	mu      sync.Mutex
	taken   []uint32 // by slot
	free    []uint32
	waiting []left
	shown   uint32              // views that were taken
	held    map[uint32]struct{} // those that are still held
	gone    bool                // one was collected since slots were reclaimed
}

// left is the slot of a block that left the table, and the last view that may show it.
type left struct{ at, view uint32 }

// take returns a free slot.
func (s *slots) take() (at uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == 0 && s.gone {
		s.reclaim()
	}
	if n := len(s.free); n > 0 {
		at, s.free = s.free[n-1], s.free[:n-1]
		s.taken[at] = s.shown
		return at
	}
	s.taken = append(s.taken, s.shown)
	return uint32(len(s.taken) - 1)
}

// reclaim frees the slots that no view shows. The lock is held.
func (s *slots) reclaim() {
	s.gone = false
	held := make([]uint32, 0, len(s.held))
	for v := range s.held {
		held = append(held, v)
	}
	slices.Sort(held)
	s.waiting = slices.DeleteFunc(s.waiting, func(l left) bool {
		i, _ := slices.BinarySearch(held, s.taken[l.at]+1) // the first view after the slot was taken
		shows := i < len(held) && held[i] <= l.view
		if !shows {
			s.free = append(s.free, l.at)
		}
		return !shows
	})
}

// drop is called when a block leaves the table.
func (s *slots) drop(at uint32) {
	s.mu.Lock()
	s.waiting = append(s.waiting, left{at, s.shown})
	s.mu.Unlock()
}

// show counts a new view, until it is collected. Views beyond what can be counted are held for ever.
func (s *slots) show(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown == math.MaxUint32-1 {
		return
	}
	s.shown++
	s.held[s.shown] = struct{}{}
	if s.shown < math.MaxUint32-1 {
		runtime.AddCleanup(v, s.forget, s.shown)
	}
}

func (s *slots) forget(view uint32) {
	s.mu.Lock()
	delete(s.held, view)
	s.gone = true
	s.mu.Unlock()
}

// angles are the sines, then the cosines, of an offset's rotary pairs.
type angles []float32

type (
	entry = args.Entry
	form  = args.Form[described]
	view  = args.View[described]
)

// table is the table of the backend. Descriptors lie in one array on the device, 88 bytes each, beside the
// entries in this process.
type table struct {
	*args.Table[described]
	b     *Backend
	freqs []float64 // of the shape's Rope

	mu    sync.Mutex
	fresh []freshDesc       // those that the device does not have
	sent  int               // slots that have been on the device
	known map[int32]*angles // by offset; blocks with one offset share them
	last  weak.Pointer[view]
	slots *slots

	// use is held by calls that read mem, and taken alone to move it.
	use sync.RWMutex
	mem *buffer
}

// freshDesc is a descriptor for a slot.
type freshDesc struct {
	at uint32
	kernels.BlockDesc
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
	made := &table{Table: t, b: b, slots: &slots{held: make(map[uint32]struct{})}}
	t.Drop = made.slots.drop
	t.Describe = func(k *args.FormKey) described { return described{made.angles(k.Offset)} }
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
	if err := args.Set(t.Table, t.b.check(), at, blocks, t.describe); err != nil {
		return fmt.Errorf("kvist/cuda: table: %w", err)
	}
	return nil
}

// describe takes a slot for a checked block. The lock is held.
func (t *table) describe(w *args.BlockView[uint64]) uint32 {
	d := kernels.BlockDesc{K: w.KMem, V: w.VMem, Pos: w.PosMem, Count: w.CountMem, Bias: w.BiasMem,
		MeanK: w.MeanKMem, MeanV: w.MeanVMem, Base: w.Base, Rows: w.Rows,
		Stride: max(1, w.Stride), Limit: w.Limit, Tokens: max(1, w.Tokens), Noise: w.Noise,
		KFormat: uint8(w.K.Coding.Format), KForm: uint8(w.K.Coding.Scale),
		VFormat: uint8(w.V.Coding.Format), VForm: uint8(w.V.Coding.Scale)}
	at := t.slots.take()
	t.fresh = append(t.fresh, freshDesc{at, d})
	return at
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
	t.mu.Lock()
	defer t.mu.Unlock()
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
	if t.last.Value() != v {
		t.last = weak.Make(v)
		t.slots.show(v)
	}
	return v, nil
}

// flush sends descriptors that the device does not have. No view shows them yet, so that calls that
// run do not read them. The lock is held.
func (t *table) flush() error {
	n := len(t.slots.taken)
	if err := t.grow(n); err != nil {
		return err
	}
	run := make([]kernels.BlockDesc, 0, len(t.fresh))
	for i := 0; i < len(t.fresh); i += len(run) {
		run = run[:0]
		at := t.fresh[i].at
		for _, d := range t.fresh[i:] {
			if d.at != at+uint32(len(run)) {
				break
			}
			run = append(run, d.BlockDesc)
		}
		raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(run))), len(run)*int(descBytes))
		if err := t.mem.Upload(int64(at)*descBytes, raw); err != nil {
			return err
		}
	}
	t.fresh, t.sent = t.fresh[:0], n
	if cap(t.fresh) > firstSlots {
		t.fresh = nil
	}
	return nil
}

// grow makes room on the device for n descriptors. Running calls end before the old memory is freed.
func (t *table) grow(n int) error {
	room := int64(0)
	if t.mem != nil {
		room = t.mem.n / descBytes
	}
	if int64(n) <= room {
		return nil
	}
	made, err := t.b.Alloc(max(firstSlots, 2*room, int64(n)) * descBytes)
	if err != nil {
		return err
	}
	mem, old := made.(*buffer), t.mem
	if t.sent > 0 {
		raw := make([]byte, int64(t.sent)*descBytes)
		if err = old.Download(0, raw); err == nil {
			err = mem.Upload(0, raw)
		}
		if err != nil {
			return errors.Join(err, mem.Free())
		}
	}
	t.use.Lock()
	t.mem = mem
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

// alive reports whether the buffers of a block are still there, apart from those that it shares with the
// block before.
func alive(v *view, e, before *entry) bool {
	ok := true
	check := func(slabs ...uint32) {
		for _, s := range slabs {
			if s != 0 && v.Slab(s).Buf.(*buffer).freed.Load() {
				ok = false
			}
		}
	}
	if before == nil || e.Site != before.Site {
		s := &v.Site(e.Site).Key
		check(s.K, s.V, s.Pos, s.Count.Slab, s.Bias.Slab)
	}
	if before == nil || e.Group != before.Group {
		g := &v.Group(e.Group).Key
		check(g.MeanK.Slab, g.MeanV.Slab)
	}
	return ok
}
