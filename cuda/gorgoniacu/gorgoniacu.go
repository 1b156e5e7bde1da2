// SPDX-License-Identifier: Apache-2.0

//go:build cgo && gorgoniacu

package gorgoniacu

import (
	"fmt"

	"gorgonia.org/cu"

	"github.com/kvist-project/kvist/cuda"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Context retains the primary context of the backend's device, the one to use memory of both sides
// in, and returns what gives it back.
//
// Errors: quant.ErrUnavailable, with what the driver says.
func Context(b *cuda.Backend) (c cu.CUContext, release func() error, err error) {
	d := cu.Device(b.Device())
	if c, err = d.RetainPrimaryCtx(); err != nil {
		return c, nil, fmt.Errorf("kvist/gorgoniacu: primary context of device %d: %w: %w", b.Device(),
			err, quant.ErrUnavailable)
	}
	return c, d.ReleasePrimaryCtx, nil
}

// Ptr returns the device address of a span of the backend's, as cuda.Backend.Address does.
//
// Errors: quant.ErrShape, quant.ErrClosed.
func Ptr(b *cuda.Backend, s backend.Span) (cu.DevicePtr, error) {
	at, err := b.Address(s)
	return cu.DevicePtr(at), err
}

// Adopt returns a buffer over n bytes of Gorgonia's memory, as cuda.Backend.Adopt does: free the
// buffer before the memory.
//
// Errors: quant.ErrShape, quant.ErrClosed.
func Adopt(b *cuda.Backend, p cu.DevicePtr, n int64) (backend.Buffer, error) {
	return b.Adopt(uint64(p), n)
}
