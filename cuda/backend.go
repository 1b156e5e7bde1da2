// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/engine/backend/selftest"
	"github.com/kvist-project/kvist/quant"
)

// AnyDevice lets Open choose the device.
const AnyDevice = -1

// Options are the options of Open.
type Options struct {
	// Library is the path of the driver's library. If it is empty, the loader finds libcuda.so.1.
	Library string
	// Device is the number of the device, or AnyDevice.
	Device int
	// Memory limits the total size of live buffers. 0 means the memory that is free when the device
	// is opened.
	Memory int64
	// Attend names the kernel of attention: AttendPlain, AttendF16 or AttendInt8. If it is empty,
	// ChooseAttend says which. A kernel that was not asked for gives way to AttendPlain when it fails the
	// self-test.
	Attend string
	// NoSelfTest skips the comparison of a tiny example with package quant, which takes some
	// milliseconds.
	NoSelfTest bool
}

// The largest dims for which the kernels have shared memory.
const (
	MaxDim     = 4096 // of encode, decode and demote
	MaxHeadDim = 1024 // of attend and relevance
)

// lanes is the number of calls that run at the same time.
const lanes = 4

// Backend is the CUDA backend. It implements backend.Backend.
type Backend struct {
	dev    *device
	attend Choice
	all    []*lane
	lanes  chan *lane // free lanes
	clock  atomic.Pointer[deviceClock]

	closed atomic.Bool // set under mu

	mu   sync.Mutex
	caps backend.Caps
	lost error
	live int64 // total size of the buffers that are not freed
	bufs map[*buffer]struct{}
}

var _ backend.Backend = (*Backend)(nil)

// Open opens a device and runs the self-test.
//
// Errors: quant.ErrUnavailable with the reason: no library, an old driver, no device, PTX that the
// driver refuses (*Error with the compiler's log), no memory for scratch (which also matches
// quant.ErrTooLarge), a failed self-test. quant.ErrShape for a negative limit.
func Open(o Options) (*Backend, error) {
	if o.Memory < 0 {
		return nil, fmt.Errorf("kvist/cuda: opening: memory limit of %d bytes: %w", o.Memory,
			quant.ErrShape)
	}
	api, info, err := open(o.Library)
	if err != nil {
		return nil, err
	}
	chosen, err := choose(info, o.Device)
	if err != nil {
		return nil, err
	}
	attend, err := ChooseAttend(chosen.Capability, o.Attend)
	if err != nil {
		return nil, err
	}
	dev, err := openDevice(api, chosen)
	if err != nil {
		return nil, unavailable(err)
	}
	b := &Backend{dev: dev, attend: attend, lanes: make(chan *lane, lanes), bufs: map[*buffer]struct{}{},
		caps: backend.Caps{Name: "cuda", Device: chosen.Name, ISA: chosen.ISA() + " " + attend.Kernel, Memory: o.Memory,
			TableBytes: 48 + int(descBytes)}}
	if err := b.start(o); err != nil {
		return nil, errors.Join(unavailable(err), b.Close())
	}
	return b, nil
}

// unavailable adds the category to an error of Open that has another one.
func unavailable(err error) error {
	if errors.Is(err, quant.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("kvist/cuda: opening the device: %w: %w", err, quant.ErrUnavailable)
}

func (b *Backend) start(o Options) error {
	err := b.dev.do(func() error {
		if o.Memory == 0 {
			free, _, err := b.dev.api.MemInfo()
			if err != nil {
				return err
			}
			b.caps.Memory = free
		}
		for range lanes {
			l, err := newLane(b.dev)
			if err != nil {
				return err
			}
			b.all = append(b.all, l)
			b.lanes <- l
		}
		return nil
	})
	if err != nil || o.NoSelfTest {
		return err
	}
	err = b.selfTest()
	if err != nil && !b.attend.forced && b.attend.Kernel != AttendPlain && b.Lost() == nil {
		why := fmt.Sprintf("%s fails the self-test: %v", b.attend.Kernel, err)
		b.attend = Choice{Kernel: AttendPlain, Why: why}
		b.caps.ISA = b.dev.info.ISA() + " " + AttendPlain
		err = b.selfTest()
	}
	return err
}

func (b *Backend) selfTest() error {
	for _, c := range selftest.Run(context.Background(), b) {
		if !c.OK {
			return fmt.Errorf("kvist/cuda: self-test: %s: %s: %w", c.Name, c.Detail,
				quant.ErrUnavailable)
		}
	}
	return nil
}

// Attention returns the kernel of attention, and why it is this one.
func (b *Backend) Attention() Choice { return b.attend }

// Caps describes the backend. Reason is empty, or says why the backend turned itself off.
func (b *Backend) Caps() backend.Caps {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.caps
}

// Supports reports whether op works on rows of dim values in coding c. The backend supports every
// coding of package quant for rows of at most MaxDim values, or MaxHeadDim in attention.
func (b *Backend) Supports(op backend.Op, c quant.Coding, dim int) bool {
	if c.CheckDim(dim) != nil {
		return false
	}
	switch op {
	case backend.OpEncode, backend.OpDecode, backend.OpGather:
		return dim <= MaxDim
	case backend.OpDemote:
		return dim <= MaxDim && c.Format.Nested()
	case backend.OpAttend, backend.OpRelevance:
		return dim <= MaxHeadDim
	}
	return false
}

// check returns the argument checker. The memory of a span is its device address.
func (b *Backend) check() args.Checker[uint64] {
	return args.Checker[uint64]{Supports: b.Supports, Bytes: b.address}
}

// open returns an error if the backend is closed or lost or the context is done. Every method calls
// it first.
func (b *Backend) open(ctx context.Context, op backend.Op) error {
	if err := b.usable(op.String()); err != nil {
		return err
	}
	return cancelled(ctx, op)
}

func cancelled(ctx context.Context, op backend.Op) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("kvist/cuda: %s: %w", op, err)
	}
	return nil
}

// withLane calls f with a lane, on a thread with the device's context.
func (b *Backend) withLane(f func(l *lane) error) error {
	l, ok := <-b.lanes
	if !ok {
		return fmt.Errorf("kvist/cuda: backend: %w", quant.ErrClosed)
	}
	defer func() { b.lanes <- l }()
	l.kernel, l.clock = "", b.clock.Load()
	return b.noteLoss(b.dev.do(func() error { return f(l) }))
}

// LiveBytes returns the total size of the buffers that are not freed.
func (b *Backend) LiveBytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.live
}

// Close waits for running calls and frees everything. Closing again does nothing.
//
// Errors: *Error for what the driver could not free; everything else is freed.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed.Load() {
		b.mu.Unlock()
		return nil
	}
	b.closed.Store(true)
	bufs := b.bufs
	b.bufs, b.live = nil, 0
	b.mu.Unlock()

	for range b.all { // until no call is running
		<-b.lanes
	}
	close(b.lanes)
	err := b.dev.giveBack(func() error {
		var err error
		for buf := range bufs {
			err = errors.Join(err, buf.release())
		}
		for _, l := range b.all {
			err = errors.Join(err, l.close())
		}
		return err
	})
	return errors.Join(err, b.dev.close())
}
