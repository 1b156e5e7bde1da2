// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// bufferAlign is the alignment of a buffer: a cache line, and the widest vector register.
const bufferAlign = 64

// buffer is a slab of bytes. An atomic pointer holds its memory, so that a use after Free is an
// error and not a race. A call that has the bytes keeps them alive.
type buffer struct {
	owner *Backend
	n     int64
	mem   atomic.Pointer[[]byte] // nil once freed
}

var _ backend.Buffer = (*buffer)(nil)

func newBuffer(owner *Backend, n int64) *buffer {
	b := &buffer{owner: owner, n: n}
	raw := make([]byte, int(n)+bufferAlign)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (bufferAlign - 1)
	mem := raw[off : off+int(n) : off+int(n)]
	b.mem.Store(&mem)
	return b
}

// Len returns the size of the buffer in bytes, also after Free.
func (b *buffer) Len() int64 { return b.n }

// bytes returns [off, off+n) of the memory.
func (b *buffer) bytes(off, n int64) ([]byte, error) {
	mem := b.mem.Load()
	if mem == nil {
		return nil, fmt.Errorf("buffer of %d bytes was freed: %w", b.n, quant.ErrClosed)
	}
	if off < 0 || n < 0 || off > b.n-n {
		return nil, fmt.Errorf("bytes [%d, +%d) of a buffer of %d: %w", off, n, b.n, quant.ErrShape)
	}
	return (*mem)[off : off+n : off+n], nil
}

// Upload copies src to [off, off+len(src)).
//
// Errors: quant.ErrShape, quant.ErrClosed.
func (b *buffer) Upload(off int64, src []byte) error {
	p, err := b.bytes(off, int64(len(src)))
	if err != nil {
		return fmt.Errorf("kvist/cpu: upload: %w", err)
	}
	copy(p, src)
	return nil
}

// Download copies [off, off+len(dst)) to dst.
//
// Errors: quant.ErrShape, quant.ErrClosed.
func (b *buffer) Download(off int64, dst []byte) error {
	p, err := b.bytes(off, int64(len(dst)))
	if err != nil {
		return fmt.Errorf("kvist/cpu: download: %w", err)
	}
	copy(dst, p)
	return nil
}

// Free releases the memory.
//
// Errors: quant.ErrClosed if the buffer was freed or its backend was closed.
func (b *buffer) Free() error {
	b.owner.mu.Lock()
	defer b.owner.mu.Unlock()
	if b.mem.Swap(nil) == nil {
		return fmt.Errorf("kvist/cpu: freeing a buffer of %d bytes twice: %w", b.n,
			quant.ErrClosed)
	}
	delete(b.owner.bufs, b)
	b.owner.live -= b.n
	return nil
}
