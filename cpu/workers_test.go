// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
)

func TestWorkers_EveryItemOnce(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 1000} {
		for _, workers := range []int{1, 2, 5} {
			seen := make([]atomic.Int32, n)
			err := newWorkers(workers).run(context.Background(), backend.OpEncode, n, func(i int) error {
				seen[i].Add(1)
				return nil
			})
			require.NoError(t, err)
			for i := range seen {
				require.Equal(t, int32(1), seen[i].Load(), "item %d", i)
			}
		}
	}
}

func TestWorkers_LowestErrorWins(t *testing.T) {
	for round := range 200 {
		w := newWorkers(4)
		err := w.run(context.Background(), backend.OpEncode, 50, func(i int) error {
			if i == 7 || i > 7 && i%3 == round%3 {
				return fmt.Errorf("item %d", i)
			}
			return nil
		})
		require.EqualError(t, err, "item 7")
		require.Len(t, w.free, 3, "every helper is back")
	}
}

// All calls together never run more helpers than the limit.
func TestWorkers_Bounded(t *testing.T) {
	const workers, callers = 3, 4
	w := newWorkers(workers)
	var now, most atomic.Int32
	var wg sync.WaitGroup
	for range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = w.run(context.Background(), backend.OpEncode, 300, func(int) error {
				n := now.Add(1)
				for {
					m := most.Load()
					if n <= m || most.CompareAndSwap(m, n) {
						break
					}
				}
				now.Add(-1)
				return nil
			})
		}()
	}
	wg.Wait()
	require.LessOrEqual(t, most.Load(), int32(callers+workers-1))
	require.Len(t, w.free, workers-1)
}

func TestWorkers_CancelStopsHandingOut(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var ran atomic.Int32
	err := newWorkers(2).run(ctx, backend.OpAttend, 10000, func(i int) error {
		if i >= 5 { // wait, however the goroutines are scheduled
			<-ctx.Done()
		}
		if ran.Add(1) == 5 {
			cancel()
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.LessOrEqual(t, ran.Load(), int32(5+2)) // the item that cancels, and one on each goroutine
	boom := errors.New("boom")
	err = newWorkers(2).run(context.Background(), backend.OpAttend, 1, func(int) error { return boom })
	require.Equal(t, boom, err)
}
