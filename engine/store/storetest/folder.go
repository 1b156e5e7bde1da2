// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"

	"github.com/kvist-project/kvist/engine/store"
)

// Plan says what goes wrong in a Folder. Operations and bytes count from when the plan is set.
type Plan struct {
	Fail  int   // the number of the operation that fails, 0 for none
	Err   error // what it fails with
	Short bool  // half of a failing write is done
	Crash int64 // the machine stops when this many bytes were written; below 0: never
}

// Folder is a store.FS in memory. It remembers what was made durable.
type Folder struct {
	mu      sync.Mutex
	files   map[string]*content
	durable map[string]*content // names that are durable
	plan    Plan
	ops     int
	written int64
	crashed bool
	locked  bool
}

// content is the bytes of a file, and what happened to them since they were made durable.
type content struct {
	data, durable []byte
	pending       []change
}

// change is a write, or a cut if data is nil.
type change struct {
	off  int64
	data []byte
}

// NewFolder returns an empty folder where nothing fails.
func NewFolder() *Folder {
	return &Folder{files: map[string]*content{}, durable: map[string]*content{}, plan: Plan{Crash: -1}}
}

// Set sets the plan.
func (d *Folder) Set(p Plan) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan, d.ops, d.written = p, 0, 0
}

// Crashed reports whether the machine has stopped.
func (d *Folder) Crashed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.crashed
}

// Restart starts the machine again. Of what was not durable, each write is there, or not, or a part of it,
// in any order; with a nil rng all of it is there.
func (d *Folder) Restart(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if rng != nil {
		names := map[string]*content{}
		for n, f := range d.files {
			if d.durable[n] == f || rng.IntN(2) == 0 {
				names[n] = f
			}
		}
		for n, f := range d.durable { // removed, but not for sure
			if d.files[n] == nil && rng.IntN(2) == 0 {
				names[n] = f
			}
		}
		for _, f := range names {
			f.settle(rng)
		}
		d.files = names
	}
	d.durable = map[string]*content{}
	for n, f := range d.files {
		f.durable, f.pending = append([]byte(nil), f.data...), nil
		d.durable[n] = f
	}
	d.plan, d.crashed, d.locked = Plan{Crash: -1}, false, false
}

// settle replaces the bytes by what the disk holds after a crash.
func (f *content) settle(rng *rand.Rand) {
	f.data = append([]byte(nil), f.durable...)
	for _, c := range f.pending {
		switch n := rng.IntN(4); {
		case c.data == nil:
			f.data = f.data[:min(int64(len(f.data)), c.off)]
		case n == 0:
		case n == 1 && len(c.data) > 0: // the machine writes sectors in any order
			from := rng.IntN(len(c.data))
			f.write(c.data[from:], c.off+int64(from))
		case n == 2:
			f.write(c.data[:rng.IntN(len(c.data)+1)], c.off)
		default:
			f.write(c.data, c.off)
		}
	}
}

func (f *content) write(p []byte, off int64) {
	if n := off + int64(len(p)); n > int64(len(f.data)) {
		f.data = append(f.data, make([]byte, n-int64(len(f.data)))...)
	}
	copy(f.data[off:], p)
}

// Corrupt flips a bit of every file's byte at an offset that is a share of its size.
func (d *Folder) Corrupt(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		if len(f.data) > 0 {
			f.data[rng.IntN(len(f.data))] ^= 1 << rng.IntN(8)
		}
	}
}

// Bytes returns the sizes of all files together.
func (d *Folder) Bytes() (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		n += int64(len(f.data))
	}
	return n
}

// enter counts an operation and returns its error.
func (d *Folder) enter() error {
	if d.crashed {
		return fmt.Errorf("the machine has stopped: %w", ErrInjected)
	}
	if d.ops++; d.ops == d.plan.Fail {
		return d.plan.Err
	}
	return nil
}

type unlocker struct{ d *Folder }

func (u unlocker) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	u.d.locked = false
	return nil
}

// Lock is that of store.FS.
func (d *Folder) Lock() (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, syscall.EWOULDBLOCK
	}
	d.locked = true
	return unlocker{d}, nil
}

// Names is that of store.FS.
func (d *Folder) Names() (names []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(); err != nil {
		return nil, err
	}
	for n := range d.files {
		names = append(names, n)
	}
	return names, nil
}

// Open is that of store.FS.
func (d *Folder) Open(name string, create bool) (store.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(); err != nil {
		return nil, err
	}
	f := d.files[name]
	switch {
	case create && f != nil:
		return nil, fs.ErrExist
	case create:
		f = &content{}
		d.files[name] = f
	case f == nil:
		return nil, fs.ErrNotExist
	}
	return &file{d, f}, nil
}

// Remove is that of store.FS.
func (d *Folder) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(); err != nil {
		return err
	}
	if d.files[name] == nil {
		return fs.ErrNotExist
	}
	delete(d.files, name)
	return nil
}

// Sync is that of store.FS.
func (d *Folder) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(); err != nil {
		return err
	}
	clear(d.durable)
	for n, f := range d.files {
		d.durable[n] = f
	}
	return nil
}

type file struct {
	d *Folder
	c *content
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.enter(); err != nil {
		return 0, err
	}
	if off >= int64(len(f.c.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.c.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := len(p), d.enter()
	if err != nil {
		if n = 0; d.plan.Short && !d.crashed {
			n = len(p) / 2
		}
	}
	if left := d.plan.Crash - d.written; d.plan.Crash >= 0 && int64(n) >= left && !d.crashed {
		n, d.crashed = int(left), true
		err = fmt.Errorf("the machine stops: %w", ErrInjected)
	}
	if n > 0 {
		d.written += int64(n)
		f.c.write(p[:n], off)
		f.c.pending = append(f.c.pending, change{off, append([]byte{}, p[:n]...)})
	}
	return n, err
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.c.data)), f.d.enter()
}

func (f *file) Truncate(n int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.enter(); err != nil {
		return err
	}
	f.c.data = f.c.data[:min(int64(len(f.c.data)), n)]
	f.c.pending = append(f.c.pending, change{off: n})
	return nil
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.enter(); err != nil {
		return err
	}
	f.c.durable, f.c.pending = append([]byte(nil), f.c.data...), nil
	return nil
}

func (f *file) Close() error { return nil }
