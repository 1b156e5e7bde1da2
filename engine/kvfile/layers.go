// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"runtime"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/parallel"
)

// eachLayer is parallel.EachOf over the layers, and tells the caller of progress.
func (c *compressor) eachLayer(ctx context.Context, stage string, workers int, f func(l *input.Layer) error) error {
	done, n := int64(0), len(c.in.Layers)
	return parallel.EachOf(ctx, workers, n, func(i int) error {
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
