// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"sync"
	"time"
)

// deviceClock sums the time of kernels.
type deviceClock struct {
	mu    sync.Mutex
	total time.Duration
}

func (c *deviceClock) add(ms float32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total += time.Duration(float64(ms) * float64(time.Millisecond))
}

// DeviceTime calls f and returns the time that kernels of this backend took during f, measured by
// the device. Transfers and host work are not included. It is for benchmarks; calls from several
// goroutines add up.
//
// Errors: those of f.
func (b *Backend) DeviceTime(f func() error) (time.Duration, error) {
	c := new(deviceClock)
	b.clock.Store(c)
	defer b.clock.Store(nil)
	err := f()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total, err
}
