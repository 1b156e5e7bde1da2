// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/quant"
)

const (
	// stagingBytes is the initial pinned memory of a lane. Transfers use it in two halves, which
	// are large enough that copying costs more than starting the copy.
	stagingBytes = 1 << 20
	// scratchBytes is the initial device memory of a lane.
	scratchBytes = 1 << 20
	// sectionAlign is the alignment of sections of scratch memory: that of the widest load.
	sectionAlign = 256
)

// lane holds the resources of one call: a stream, pinned staging memory and scratch memory on the
// device. The first bytes of scratch mirror the staging memory, so that one copy moves all inputs
// and one all outputs. Lanes are pooled: memory that a call needed stays for the next.
type lane struct {
	dev     *device
	stream  driver.Stream
	events  [2]driver.Event
	staging []byte
	scratch driver.DevicePtr
	size    int64 // size of scratch
	launch  *driver.Launch
	kernel  string       // the last launch, for errors that appear later
	clock   *deviceClock // nil: nothing is timed
}

// newLane makes a lane. On failure it leaves nothing behind.
func newLane(d *device) (l *lane, err error) {
	l = &lane{dev: d, launch: new(driver.Launch)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
			l = nil
		}
	}()
	if l.stream, err = d.api.NewStream(); err != nil {
		return l, err
	}
	for i := range l.events {
		if l.events[i], err = d.api.NewEvent(); err != nil {
			return l, err
		}
	}
	return l, l.ready(stagingBytes, scratchBytes)
}

// close frees everything that the lane has.
func (l *lane) close() error {
	api := l.dev.api
	var errs []error
	if l.stream != 0 {
		errs = append(errs, l.wait())
	}
	if l.scratch != 0 {
		errs = append(errs, api.MemFree(l.scratch))
	}
	if l.staging != nil {
		errs = append(errs, api.HostFree(l.staging))
	}
	for _, e := range l.events {
		if e != 0 {
			errs = append(errs, api.DestroyEvent(e))
		}
	}
	if l.stream != 0 {
		errs = append(errs, api.DestroyStream(l.stream))
	}
	*l = lane{dev: l.dev, launch: l.launch}
	return errors.Join(errs...)
}

// grown returns the next size of a pool that must hold n bytes.
func grown(now, n int64) int64 {
	for now < n {
		now *= 2
	}
	return now
}

// ready makes room for staged bytes of staging memory and total bytes of scratch.
func (l *lane) ready(staged, total int64) error {
	if staged < 0 || total < staged || total > math.MaxInt64/4 || staged > math.MaxInt/4 {
		return fmt.Errorf("kvist/cuda: scratch of %d bytes: %w", total, quant.ErrTooLarge)
	}
	api := l.dev.api
	if staged > int64(len(l.staging)) {
		if l.staging != nil {
			old := l.staging
			l.staging = nil
			if err := api.HostFree(old); err != nil {
				return err
			}
		}
		b, err := api.HostAlloc(int(grown(stagingBytes, staged)))
		if err != nil {
			return err
		}
		l.staging = b
	}
	if total <= l.size {
		return nil
	}
	if l.scratch != 0 {
		old := l.scratch
		l.scratch, l.size = 0, 0
		if err := api.MemFree(old); err != nil {
			return err
		}
	}
	n := grown(scratchBytes, total)
	p, err := api.MemAlloc(n)
	var e *driver.Error
	if errors.As(err, &e) && e.Code == driver.StatusOutOfMemory && n > total {
		n = total // the exact size may still fit
		p, err = api.MemAlloc(n)
	}
	if err != nil {
		return err
	}
	l.scratch, l.size = p, n
	return nil
}

// wait waits for the stream. It returns errors of kernels.
func (l *lane) wait() error { return l.blame(l.dev.api.Synchronize(l.stream)) }

// blame adds the last launched kernel to an error.
func (l *lane) blame(err error) error {
	var e *driver.Error
	if errors.As(err, &e) && e.Kernel == "" {
		e.Kernel = l.kernel
	}
	return err
}

// send copies the first n bytes of staging to scratch; fetch copies a range back.
func (l *lane) send(n int64) error {
	if n == 0 {
		return nil
	}
	return l.dev.api.CopyToDevice(l.scratch, l.staging[:n], l.stream)
}

func (l *lane) fetch(at, n int64) error {
	if n == 0 {
		return nil
	}
	return l.dev.api.CopyToHost(l.staging[at:at+n], l.scratch+driver.DevicePtr(at), l.stream)
}

// timed calls f to start kernels, between two events if timing is on. The events are free, because
// transfers have ended when kernels start.
func (l *lane) timed(f func() error) error {
	if l.clock == nil {
		return f()
	}
	if err := l.dev.api.Record(l.events[0], l.stream); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return l.dev.api.Record(l.events[1], l.stream)
}

// tick adds the time of the kernels that timed started. The stream must have been waited for.
func (l *lane) tick() error {
	if l.clock == nil {
		return nil
	}
	ms, err := l.dev.api.Elapsed(l.events[0], l.events[1])
	l.clock.add(ms)
	return err
}

// start launches a kernel with its parameter struct.
func start[P any](l *lane, kernel string, grid [2]int, threads, shared int, params P) error {
	n := int(unsafe.Sizeof(params))
	*(*P)(unsafe.Pointer(&l.launch.Params)) = params
	l.kernel = kernel
	return l.dev.api.Start(l.launch, l.dev.functions[kernel], kernel, grid, threads, shared, n,
		l.stream)
}

// section is a range of a call's scratch memory.
type section struct{ at, n int64 }

// layout places sections one after another.
type layout struct {
	size int64
	bad  bool // a size overflowed
}

func (y *layout) add(n int, size uintptr) section {
	bytes := int64(n) * int64(size)
	if n < 0 || bytes < 0 || (n > 0 && bytes/int64(n) != int64(size)) || y.size > math.MaxInt64/4 {
		y.bad = true
		return section{}
	}
	s := section{y.size, bytes}
	y.size += (bytes + sectionAlign - 1) / sectionAlign * sectionAlign
	return s
}

func room[T any](y *layout, n int) section {
	var zero T
	return y.add(n, unsafe.Sizeof(zero))
}

// address returns the device address of a section, or 0 for an empty one.
func (l *lane) address(s section) uint64 {
	if s.n == 0 {
		return 0
	}
	return uint64(l.scratch) + uint64(s.at)
}

// slice returns a section of staging as elements.
func slice[T any](l *lane, s section) []T {
	var zero T
	if s.n == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&l.staging[s.at])), int(s.n)/int(unsafe.Sizeof(zero)))
}
