// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// ArchiveWeights returns what the tokens of an archive are worth, as the steps of their rows tell
// it: with them, blocks in hot form are made from an archive as from the original, whose queries
// it does not hold. nil for a file without records in archive form, or one that weighs all alike.
//
// Errors: as Decompress.
func ArchiveWeights(ctx context.Context, r *container.Reader, profiles ...*profile.Profile) (Weights, error) {
	codec, err := cold.OpenCodec(r, profiles)
	h := r.Header()
	if err != nil || codec == nil || h.Kind != container.KindCache {
		return nil, err
	}
	if err := checkExpansion(r); err != nil { // weights are not backed by as many bytes either
		return nil, err
	}
	weights, err := cold.Weights(ctx, r, codec)
	if err != nil || weights == nil {
		return nil, err
	}
	return weightsOf(weights), nil
}

// weightsOf hands out weights [heads][tokens] of layers by number. The caller takes the layers from
// elsewhere, and side tensors of a forged file can have the names of some.
func weightsOf(weights map[int][][]float32) Weights {
	return func(layer, kvHead int) ([]float32, error) {
		heads := weights[layer]
		if kvHead >= len(heads) {
			return nil, fmt.Errorf("kvist/kvfile: the file has no records of layer %d head %d: %w", layer,
				kvHead, quant.ErrCorrupt)
		}
		return heads[kvHead], nil
	}
}
