// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// buffer is one allocation of device memory.
type buffer struct {
	owner *Backend
	n     int64
	at    driver.DevicePtr // 0 if n is 0
	freed atomic.Bool
	// foreign memory belongs to other code: it is neither counted nor freed.
	foreign bool
}

var _ backend.Buffer = (*buffer)(nil)

// Alloc returns a zeroed buffer of n bytes, aligned to 256.
//
// Errors: quant.ErrShape for a negative n; quant.ErrTooLarge beyond Caps.Memory; *Error, which
// matches quant.ErrTooLarge, if the device is out of memory; quant.ErrClosed.
func (b *Backend) Alloc(n int64) (backend.Buffer, error) {
	if n < 0 {
		return nil, fmt.Errorf("kvist/cuda: allocating %d bytes: %w", n, quant.ErrShape)
	}
	if err := b.usable(fmt.Sprintf("allocating %d bytes", n)); err != nil {
		return nil, err
	}
	b.mu.Lock()
	limit := b.caps.Memory
	if n > limit-b.live {
		live := b.live
		b.mu.Unlock()
		return nil, fmt.Errorf("kvist/cuda: allocating %d bytes with %d in use, limit %d: %w", n, live,
			limit, quant.ErrTooLarge)
	}
	b.live += n // reserve the bytes first
	b.mu.Unlock()

	buf := &buffer{owner: b, n: n}
	err := b.allocate(buf)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.live -= n
		return nil, err
	}
	if b.closed.Load() {
		return nil, errors.Join(fmt.Errorf("kvist/cuda: allocating %d bytes: backend: %w", n,
			quant.ErrClosed), b.dev.do(buf.release))
	}
	b.bufs[buf] = struct{}{}
	return buf, nil
}

// allocate gives a buffer zeroed memory. On failure the buffer has none.
func (b *Backend) allocate(buf *buffer) error {
	if buf.n == 0 {
		return nil
	}
	err := b.withLane(func(l *lane) error {
		var err error
		if buf.at, err = b.dev.api.MemAlloc(buf.n); err != nil {
			return err
		}
		if err := b.dev.api.Set(buf.at, 0, buf.n, l.stream); err != nil {
			return err
		}
		return l.wait()
	})
	if err != nil && buf.at != 0 {
		err = errors.Join(err, b.dev.giveBack(buf.release))
	}
	return err
}

// release frees the memory. The context must be current.
func (b *buffer) release() error {
	at := b.at
	b.at = 0
	if at == 0 || b.foreign {
		return nil
	}
	return b.owner.dev.api.MemFree(at)
}

// Len returns the size of the buffer in bytes, also after Free.
func (b *buffer) Len() int64 { return b.n }

// address returns the device address of a span.
func (b *Backend) address(s backend.Span) (uint64, error) {
	buf, ok := s.Buf.(*buffer)
	if !ok || buf == nil || buf.owner != b {
		return 0, fmt.Errorf("the buffer belongs to another backend: %w", quant.ErrShape)
	}
	at, err := buf.place(s.Off, s.Len)
	return uint64(at), err
}

// place returns the device address of [off, off+n).
func (b *buffer) place(off, n int64) (driver.DevicePtr, error) {
	if b.freed.Load() || b.owner.closed.Load() {
		return 0, fmt.Errorf("buffer of %d bytes was freed: %w", b.n, quant.ErrClosed)
	}
	if off < 0 || n < 0 || off > b.n-n {
		return 0, fmt.Errorf("bytes [%d, +%d) of a buffer of %d: %w", off, n, b.n, quant.ErrShape)
	}
	return b.at + driver.DevicePtr(off), nil
}

// Upload copies src to [off, off+len(src)), through pinned memory.
//
// Errors: quant.ErrShape, quant.ErrClosed, *Error.
func (b *buffer) Upload(off int64, src []byte) error {
	at, err := b.place(off, int64(len(src)))
	if err != nil {
		return fmt.Errorf("kvist/cuda: upload: %w", err)
	}
	if err := b.owner.usable("upload"); err != nil || len(src) == 0 {
		return err
	}
	return b.owner.withLane(func(l *lane) error {
		api, half := l.dev.api, len(l.staging)/2
		for i, busy := 0, [2]bool{}; len(src) > 0; i ^= 1 {
			if busy[i] {
				if err := api.WaitEvent(l.events[i]); err != nil {
					return err
				}
			}
			part := l.staging[i*half : (i+1)*half]
			n := copy(part, src)
			if err := api.CopyToDevice(at, part[:n], l.stream); err != nil {
				return errors.Join(err, l.wait()) // nothing may read staging after this call
			}
			if err := api.Record(l.events[i], l.stream); err != nil {
				return errors.Join(err, l.wait())
			}
			busy[i] = true
			src, at = src[n:], at+driver.DevicePtr(n)
		}
		return l.wait()
	})
}

// Download copies [off, off+len(dst)) to dst, through pinned memory.
//
// Errors: quant.ErrShape, quant.ErrClosed, *Error.
func (b *buffer) Download(off int64, dst []byte) error {
	at, err := b.place(off, int64(len(dst)))
	if err != nil {
		return fmt.Errorf("kvist/cuda: download: %w", err)
	}
	if err := b.owner.usable("download"); err != nil || len(dst) == 0 {
		return err
	}
	return b.owner.withLane(func(l *lane) error { return l.download(at, dst) })
}

// download copies device memory to dst. While it empties one half of staging, the other half fills.
func (l *lane) download(at driver.DevicePtr, dst []byte) error {
	api, half := l.dev.api, len(l.staging)/2
	var waiting [2][]byte // destination of each half
	empty := func(i int) error {
		if waiting[i] == nil {
			return nil
		}
		err := l.blame(api.WaitEvent(l.events[i]))
		copy(waiting[i], l.staging[i*half:])
		waiting[i] = nil
		return err
	}
	i := 0
	for ; len(dst) > 0; i ^= 1 {
		if err := empty(i); err != nil {
			return err
		}
		n := min(half, len(dst))
		if err := api.CopyToHost(l.staging[i*half:i*half+n], at, l.stream); err != nil {
			return errors.Join(err, l.wait())
		}
		if err := api.Record(l.events[i], l.stream); err != nil {
			return errors.Join(err, l.wait())
		}
		waiting[i] = dst[:n]
		dst, at = dst[n:], at+driver.DevicePtr(n)
	}
	return errors.Join(empty(i), empty(i^1), l.wait())
}

// Free frees the memory.
//
// Errors: quant.ErrClosed if the buffer was freed or its backend was closed; *Error if the driver
// reports one, possibly of earlier work. The memory is freed in any case.
func (b *buffer) Free() error {
	o := b.owner
	o.mu.Lock()
	if b.freed.Load() || o.closed.Load() {
		o.mu.Unlock()
		return fmt.Errorf("kvist/cuda: freeing a buffer of %d bytes twice: %w", b.n,
			quant.ErrClosed)
	}
	b.freed.Store(true)
	delete(o.bufs, b)
	if !b.foreign {
		o.live -= b.n
	}
	o.mu.Unlock()
	if b.n == 0 || b.foreign {
		return nil
	}
	return o.noteLoss(o.dev.giveBack(b.release))
}
