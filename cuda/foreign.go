// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"fmt"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// foreignAlign is the alignment that the driver gives memory and kernels count on.
const foreignAlign = 256

// Device returns the number of the device, as the driver counts. Its primary context is the one that
// buffers belong to.
func (b *Backend) Device() int { return b.dev.info.Index }

// Address returns the device address of a span, for other code in this process that works in the
// primary context of Device. The address is good until the buffer is freed. Calls of this backend
// are done with the memory when they return; other code that writes to it must be done, and its
// stream waited for, before the next call that reads it.
//
// Errors: quant.ErrShape for a span of another backend or beyond its buffer; quant.ErrClosed.
func (b *Backend) Address(s backend.Span) (uint64, error) {
	at, err := b.address(s)
	if err != nil {
		return 0, fmt.Errorf("kvist/cuda: address: %w", err)
	}
	return at, nil
}

// Adopt returns a buffer over n bytes at a device address, memory that other code allocated in the
// primary context of Device, so that rows can be encoded from it, or packed to it, without a copy.
// The memory stays its owner's: it must live until Free, which gives nothing back, and it is not
// counted in Caps.Memory. That the address is good cannot be checked; a bad one turns the backend
// off at the first call that uses it.
//
// Errors: quant.ErrShape for an address that is 0 or no multiple of 256, or n below 1;
// quant.ErrClosed.
func (b *Backend) Adopt(address uint64, n int64) (backend.Buffer, error) {
	what := fmt.Sprintf("adopting %d bytes at %#x", n, address)
	if n < 1 || address == 0 || address%foreignAlign != 0 || address > ^uint64(0)-uint64(n) {
		return nil, fmt.Errorf("kvist/cuda: %s: want at least 1 byte at a multiple of %d: %w", what,
			foreignAlign, quant.ErrShape)
	}
	if err := b.usable(what); err != nil {
		return nil, err
	}
	buf := &buffer{owner: b, n: n, at: driver.DevicePtr(address), foreign: true}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		return nil, fmt.Errorf("kvist/cuda: %s: backend: %w", what, quant.ErrClosed)
	}
	b.bufs[buf] = struct{}{}
	return buf, nil
}
