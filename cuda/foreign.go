// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"fmt"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// foreignAlign is the alignment of driver memory, which the kernels rely on.
const foreignAlign = 256

// Device returns the driver's number of the device. Buffers belong to its primary context.
func (b *Backend) Device() int { return b.dev.info.Index }

// Address returns the device address of a span, for other code in this process that uses the
// primary context of Device. The address is valid until the buffer is freed. When a call of this
// backend returns, it no longer uses the memory. Other code that writes to it must finish, and
// synchronise its stream, before the next call that reads it.
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
// primary context of Device. Rows can then be encoded from it, or packed into it, without a copy.
// The owner must keep the memory until Free, which does not free it; Caps.Memory does not count it.
// Adopt cannot check the address; the first call that uses a wrong one turns the backend off.
// off at the first call that uses it.
//
// Errors: quant.ErrShape for an address that is 0 or not a multiple of 256, or n below 1;
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
