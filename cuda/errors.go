// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"errors"
	"fmt"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/quant"
)

// Error describes a driver call that failed: Op, Kernel, Code, Name, Log.
type Error = driver.Error

// lost keeps the first error that means that the device is lost.
func (b *Backend) noteLoss(err error) error {
	var e *Error
	if err == nil || !errors.As(err, &e) || !e.Code.DeviceLost() {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost == nil {
		b.lost = e
		b.caps.Reason = "turned off: " + e.Error()
	}
	return err
}

// Lost returns why the backend turned itself off, or nil if it works.
func (b *Backend) Lost() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lost
}

// usable returns an error if the backend is closed or lost. what names the call.
func (b *Backend) usable(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed.Load():
		return fmt.Errorf("kvist/cuda: %s: backend: %w", what, quant.ErrClosed)
	case b.lost != nil:
		return fmt.Errorf("kvist/cuda: %s: the device was lost earlier: %w", what, b.lost)
	}
	return nil
}
