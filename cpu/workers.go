// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/backend"
)

// workers bounds the goroutines that all calls of a backend start.
type workers struct {
	n    int
	free chan struct{} // one token per helper that may start
	runs sync.Pool     // of *workRun
}

// workRun is one call of run. It is reused, so that run allocates nothing.
type workRun struct {
	w          *workers
	ctx        context.Context
	f          func(i int) error
	next, stop atomic.Int64
	helpers    sync.WaitGroup
	help       func() // the body of a helper, created once

	mu     sync.Mutex
	failed int
	first  error
}

func newWorkers(n int) *workers {
	w := &workers{n: n, free: make(chan struct{}, n-1)}
	for range n - 1 {
		w.free <- struct{}{}
	}
	w.runs.New = func() any {
		r := &workRun{w: w}
		r.help = func() {
			defer func() { w.free <- struct{}{}; r.helpers.Done() }()
			r.work()
		}
		return r
	}
	return w
}

// run calls f(0) .. f(n-1) on the caller's goroutine and on as many helpers as are free. It hands
// out items in order. Once ctx is done, no further item starts. After an error, only items before
// the failing one still run, so the returned error is that of the lowest failing item for any
// number of workers.
func (w *workers) run(ctx context.Context, op backend.Op, n int, f func(i int) error) error {
	r := w.runs.Get().(*workRun)
	r.ctx, r.f, r.failed, r.first = ctx, f, n, nil
	r.next.Store(0)
	r.stop.Store(int64(n))
	for range min(w.n, n) - 1 {
		select {
		case <-w.free:
			r.helpers.Add(1)
			go r.help()
		default:
		}
	}
	r.work()
	r.helpers.Wait()
	first := r.first
	r.ctx, r.f, r.first = nil, nil, nil
	w.runs.Put(r)
	if first != nil {
		return first
	}
	return cancelled(ctx, op)
}

// work takes items until none are left.
func (r *workRun) work() {
	for {
		i := int(r.next.Add(1)) - 1
		if int64(i) >= r.stop.Load() || r.ctx.Err() != nil {
			return
		}
		if err := r.f(i); err != nil {
			r.mu.Lock()
			if i < r.failed {
				r.failed, r.first = i, err
				r.stop.Store(int64(i))
			}
			r.mu.Unlock()
			return
		}
	}
}
