// SPDX-License-Identifier: Apache-2.0

// Package parallel calls a function for many indexes on several cores.
package parallel

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// Each calls f for 0 to n-1 on all cores and returns the error of the lowest number that has one.
func Each(ctx context.Context, n int, f func(i int) error) error {
	return EachOf(ctx, runtime.GOMAXPROCS(0), n, f)
}

// EachOf is Each with at most so many workers.
func EachOf(ctx context.Context, workers, n int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	at := n
	for range min(n, workers) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				err := ctx.Err()
				if err == nil {
					err = f(i)
				}
				if err != nil {
					// Calls with lower numbers have begun already; if one fails, it gets here and replaces this error.
					mu.Lock()
					if i < at {
						at, first = i, err
					}
					mu.Unlock()
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}
