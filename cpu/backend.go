// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/cpu/internal/slab"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// Options are the options of Open. The zero value chooses the best for this machine.
type Options struct {
	// ISA is the instruction set, one of ISAs. If it is empty, KVIST_CPU decides, else the best is
	// used.
	ISA string
	// Workers is the largest number of goroutines of a call, up to MaxWorkers. 0 means
	// runtime.GOMAXPROCS(0).
	Workers int
	// Memory limits the total size of live buffers. 0 means the memory of the machine, if known.
	Memory int64
	// Reason is the value of Caps.Reason: why no better backend was chosen.
	Reason string
}

// MaxWorkers is the largest Options.Workers.
const MaxWorkers = 1 << 12

// Backend is the cpu backend. It implements backend.Backend.
type Backend struct {
	caps    backend.Caps
	kern    *attend.Kernels
	codec   *codec.Kernels
	workers *workers
	scratch sync.Pool // of *scratch
	coders  sync.Pool // of *coder
	calls   sync.Pool // of *call
	encodes sync.Pool // of *encodeCall
	checker args.Checker[[]byte]

	mu        sync.Mutex
	rotations map[rotKey]*codec.Rotation
	closed    bool
	live      int64 // total size of the buffers that are not freed
	bufs      map[*buffer]struct{}
	pool      *slab.Pool
	turns     turns
}

var _ backend.Backend = (*Backend)(nil)

// Open returns a backend.
//
// Errors: quant.ErrUnsupported for an unknown instruction set, quant.ErrUnavailable for one that
// this build or this machine does not have, quant.ErrShape for numbers out of range.
func Open(o Options) (*Backend, error) {
	if o.Workers < 0 || o.Workers > MaxWorkers {
		return nil, fmt.Errorf("kvist/cpu: opening: %d workers, want 0 to %d: %w", o.Workers,
			MaxWorkers, quant.ErrShape)
	}
	if o.Memory < 0 {
		return nil, fmt.Errorf("kvist/cpu: opening: memory limit of %d bytes: %w", o.Memory,
			quant.ErrShape)
	}
	kern, coding, err := chooseISA(o.ISA, environment)
	if err != nil {
		return nil, err
	}
	if o.Workers == 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), MaxWorkers)
	}
	if o.Memory == 0 {
		o.Memory = physicalMemory()
	}
	b := &Backend{
		kern: kern, codec: coding,
		caps: backend.Caps{
			Name: "cpu", Device: runtime.GOOS + "/" + runtime.GOARCH, ISA: kern.ISA(),
			Workers: o.Workers, Memory: o.Memory, TableBytes: 40, Reason: o.Reason,
		},
		workers:   newWorkers(o.Workers),
		scratch:   sync.Pool{New: func() any { return new(scratch) }},
		coders:    sync.Pool{New: func() any { return newCoder(coding) }},
		rotations: make(map[rotKey]*codec.Rotation),
		bufs:      make(map[*buffer]struct{}),
		pool:      new(slab.Pool),
	}
	runtime.AddCleanup(b, func(p *slab.Pool) { p.Close() }, b.pool) // for want of Close
	b.checker = b.newChecker()
	b.calls.New = func() any { return newCall(b) }
	b.encodes.New = func() any { return newEncodeCall(b) }
	return b, nil
}

// Caps describes the backend. It also works after Close.
func (b *Backend) Caps() backend.Caps { return b.caps }

// Supports reports whether op works on rows of dim values in coding c. The backend supports every
// coding and dim of package quant, and demotion within lm1..lm4.
func (b *Backend) Supports(op backend.Op, c quant.Coding, dim int) bool {
	if op > backend.OpGather || c.CheckDim(dim) != nil {
		return false
	}
	return op != backend.OpDemote || c.Format.Nested()
}

// Alloc returns a zeroed buffer of n bytes, aligned to 64.
//
// Errors: quant.ErrShape for a negative n, quant.ErrTooLarge beyond Caps.Memory or what the system
// gives, quant.ErrClosed.
func (b *Backend) Alloc(n int64) (backend.Buffer, error) {
	if n < 0 {
		return nil, fmt.Errorf("kvist/cpu: allocating %d bytes: %w", n, quant.ErrShape)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("kvist/cpu: allocating %d bytes: backend: %w", n, quant.ErrClosed)
	}
	limit := b.caps.Memory
	if limit == 0 {
		limit = math.MaxInt64
	}
	limit = min(limit, math.MaxInt-slab.Align)
	if n > limit-b.live {
		return nil, fmt.Errorf("kvist/cpu: allocating %d bytes with %d in use, limit %d: %w", n, b.live,
			limit, quant.ErrTooLarge)
	}
	buf, err := newBuffer(b, n)
	if err != nil {
		return nil, fmt.Errorf("kvist/cpu: allocating %d bytes with %d in use: %w: %w", n, b.live, err,
			quant.ErrTooLarge)
	}
	b.bufs[buf] = struct{}{}
	b.live += n
	return buf, nil
}

// LiveBytes returns the total size of the buffers that are not freed.
func (b *Backend) LiveBytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.live
}

// Close frees the backend and its buffers. Running calls finish normally; later calls return
// quant.ErrClosed. Closing again does nothing.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for buf := range b.bufs {
		buf.mem.Store(nil)
		b.retire(buf.piece)
	}
	clear(b.bufs)
	b.live = 0
	b.closePool()
	return nil
}

// open starts a call, or returns an error if the backend is closed or the context is done. Every
// method calls it first, and leave with the same turn last.
func (b *Backend) open(ctx context.Context, op backend.Op) (turn uint64, err error) {
	b.mu.Lock()
	closed := b.closed
	if !closed && ctx.Err() == nil {
		turn = b.turns.enter()
	}
	b.mu.Unlock()
	if closed {
		return 0, fmt.Errorf("kvist/cpu: %s: backend: %w", op, quant.ErrClosed)
	}
	if turn == 0 {
		return 0, cancelled(ctx, op)
	}
	return turn, nil
}

func cancelled(ctx context.Context, op backend.Op) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("kvist/cpu: %s: %w", op, err)
	}
	return nil
}
