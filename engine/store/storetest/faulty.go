// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/engine/store"
)

// ErrInjected is what Faulty and Folder fail with, beside errors of the system.
var ErrInjected = errors.New("storetest: an injected fault")

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Faulty is a Store of which calls fail, before or after they are done, and which serves wrong bytes: cut
// ones, changed ones, those of another key.
type Faulty struct {
	store.Store
	mu    sync.Mutex
	rng   *rand.Rand
	share float64
	other []byte // what was served before
	count int
}

// NewFaulty returns a Faulty over a store. share of its calls misbehave.
func NewFaulty(s store.Store, seed uint64, share float64) *Faulty {
	return &Faulty{Store: s, rng: rand.New(rand.NewPCG(seed, 1)), share: share}
}

// Faults returns how many calls have misbehaved.
func (f *Faulty) Faults() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// fate returns what happens to a call: 0 nothing, or one of n faults.
func (f *Faulty) fate(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rng.Float64() >= f.share {
		return 0
	}
	f.count++
	return 1 + f.rng.IntN(n)
}

func fault(call string, cause error) error {
	return fmt.Errorf("%s: %w: %w", call, ErrInjected, cause)
}

// Put is that of store.Store.
func (f *Faulty) Put(ctx context.Context, k store.Key, data []byte, expires time.Time) error {
	switch f.fate(3) {
	case 1:
		return fault("put", syscall.ENOSPC)
	case 2:
		return fault("put", syscall.EIO)
	case 3: // it happens, but nobody is told
		_ = f.Store.Put(ctx, k, data, expires)
		return fault("put", context.DeadlineExceeded)
	}
	return f.Store.Put(ctx, k, data, expires)
}

// Get is that of store.Store.
func (f *Faulty) Get(ctx context.Context, k store.Key) ([]byte, error) {
	data, err := f.Store.Get(ctx, k)
	if err != nil {
		return nil, err
	}
	fate := f.fate(5)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch fate {
	case 1:
		return nil, fault("get", syscall.EIO)
	case 2:
		return data[:f.rng.IntN(len(data)+1)], nil
	case 3:
		if len(data) > 0 {
			data[f.rng.IntN(len(data))] ^= 1 << f.rng.IntN(8)
		}
		return data, nil
	case 4:
		other := f.other
		f.other = append([]byte(nil), data...)
		return append([]byte(nil), other...), nil
	case 5:
		return append(data, 0), nil
	}
	return data, nil
}

// Delete is that of store.Store.
func (f *Faulty) Delete(ctx context.Context, k store.Key) error {
	if f.fate(1) != 0 {
		return fault("delete", syscall.EIO)
	}
	return f.Store.Delete(ctx, k)
}

// List is that of store.Store.
func (f *Faulty) List(ctx context.Context) iter.Seq2[store.Info, error] {
	if f.fate(1) != 0 {
		return func(yield func(store.Info, error) bool) { yield(store.Info{}, fault("list", syscall.EIO)) }
	}
	return f.Store.List(ctx)
}
