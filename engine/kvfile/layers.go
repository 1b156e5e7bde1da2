// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"

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
