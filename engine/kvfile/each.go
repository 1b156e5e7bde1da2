// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/engine/internal/input"
)

// eachIndex calls f for 0 to n-1 on all cores and returns the error of the lowest number that has one.
func eachIndex(ctx context.Context, n int, f func(i int) error) error {
	return eachOf(ctx, runtime.GOMAXPROCS(0), n, f)
}

// eachOf is eachIndex with at most so many workers.
func eachOf(ctx context.Context, workers, n int, f func(i int) error) error {
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
					// Lower numbers have begun already, and will say so here.
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

// eachLayer is eachOf over the layers, and tells the caller of progress.
func (c *compressor) eachLayer(ctx context.Context, stage string, workers int, f func(l *input.Layer) error) error {
	done, n := int64(0), len(c.in.Layers)
	return eachOf(ctx, workers, n, func(i int) error {
		err := f(&c.in.Layers[i])
		c.caller.Lock()
		defer c.caller.Unlock()
		done++
		c.say.Say(stage, done, int64(n))
		return err
	})
}

// measuredTokens bounds the tokens of all layers that are measured at a time: a head's rows are held while it
// is, as they are stored and as float32.
const measuredTokens = 1 << 20

// layerWorkers is how many layers are measured at a time.
func (c *compressor) layerWorkers() int {
	most := 1
	for i := range c.in.Layers {
		most = max(most, c.in.Layers[i].Tokens)
	}
	return max(1, min(runtime.GOMAXPROCS(0), measuredTokens/most))
}
