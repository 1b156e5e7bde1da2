// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"sync/atomic"

	"github.com/kvist-project/kvist/cpu/internal/slab"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// buffer is a piece of memory outside of the Go heap. An atomic pointer holds it, so that a use
// after Free is an error and not a race. Memory that was freed goes back to the pool once no call
// runs that may still use it; see Backend.open.
//
// A buffer that is dropped without Free stays until its backend is closed or dropped, and counts
// towards LiveBytes: a collector that frees it at some time would hide the mistake.
type buffer struct {
	owner *Backend
	n     int64
	piece slab.Piece
	mem   atomic.Pointer[[]byte] // nil once freed
}

var _ backend.Buffer = (*buffer)(nil)

func newBuffer(owner *Backend, n int64) (*buffer, error) {
	piece, err := owner.pool.Alloc(int(n))
	if err != nil {
		return nil, err
	}
	b := &buffer{owner: owner, n: n, piece: piece}
	b.mem.Store(&b.piece.Mem)
	return b, nil
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
	turn := b.owner.enter()
	defer b.owner.leave(turn)
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
	turn := b.owner.enter()
	defer b.owner.leave(turn)
	p, err := b.bytes(off, int64(len(dst)))
	if err != nil {
		return fmt.Errorf("kvist/cpu: download: %w", err)
	}
	copy(dst, p)
	return nil
}

// Free releases the memory. Calls that run keep it until they return.
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
	b.owner.retire(b.piece)
	return nil
}
