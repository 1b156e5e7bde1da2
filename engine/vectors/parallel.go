// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// workersOf returns the number of goroutines, GOMAXPROCS for 0.
func workersOf(n int) int {
	if n == 0 {
		return runtime.GOMAXPROCS(0)
	}
	return n
}

// grown returns a slice of n elements that keeps those of s, for their memory.
func grown[T any](s []T, n int) []T {
	for cap(s) < n {
		s = append(s[:cap(s)], *new(T))
	}
	return s[:n]
}

// parallelN calls what worker returns for 0 to n-1, each once, in so many goroutines. It returns the first error
// or that of ctx.
func parallelN(ctx context.Context, n, workers int, worker func() func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	loop := func() {
		do := worker()
		for failed.Load() == nil {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			err := ctx.Err()
			if err == nil {
				err = do(i)
			}
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		}
	}
	var wg sync.WaitGroup
	for range min(workers, n) - 1 {
		wg.Go(loop)
	}
	loop()
	wg.Wait()
	if err := failed.Load(); err != nil {
		return fmt.Errorf("kvist/vectors: %w", *err)
	}
	return nil
}
