// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
)

// workers bounds the goroutines that all calls of a backend add to those of their callers.
type workers struct {
	n    int
	free chan struct{} // a token for each helper that may be started
}

func newWorkers(n int) *workers {
	w := &workers{n: n, free: make(chan struct{}, n-1)}
	for range n - 1 {
		w.free <- struct{}{}
	}
	return w
}

// run calls f(0) .. f(n-1), on the caller's goroutine and on as many helpers as are free. Items
// are handed out in order. Once ctx is done, no further item starts; after an error, only items
// before the failing one still run. So the error returned is always that of the lowest failing
// item, whatever the number of workers.
func (w *workers) run(ctx context.Context, op backend.Op, n int, f func(i int) error) error {
	var (
		next, stop atomic.Int64
		mu         sync.Mutex
		failed     = n
		first      error
	)
	stop.Store(int64(n))
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if int64(i) >= stop.Load() || ctx.Err() != nil {
				return
			}
			if err := f(i); err != nil {
				mu.Lock()
				if i < failed {
					failed, first = i, err
					stop.Store(int64(i))
				}
				mu.Unlock()
				return
			}
		}
	}
	var helpers sync.WaitGroup
	for range min(w.n, n) - 1 {
		select {
		case <-w.free:
			helpers.Add(1)
			go func() {
				defer func() { w.free <- struct{}{}; helpers.Done() }()
				work()
			}()
		default:
		}
	}
	work()
	helpers.Wait()
	if first != nil {
		return first
	}
	return cancelled(ctx, op)
}
