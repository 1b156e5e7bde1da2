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

// ArchiveWeights returns the weights of the tokens of an archive, which follow from the steps of
// their rows. An archive holds no queries; with these weights it is compressed to hot form as the
// original would be. nil for a file without records in archive form, or one whose tokens all weigh
// the same.
//
// Errors: as Decompress.
func ArchiveWeights(ctx context.Context, r *container.Reader, profiles ...*profile.Profile) (Weights, error) {
	codec, err := cold.OpenCodec(r, profiles)
	h := r.Header()
	if err != nil || codec == nil || h.Kind != container.KindCache {
		return nil, err
	}
	if err := checkExpansion(r); err != nil { // the size of the file does not bound the number of weights either
		return nil, err
	}
	weights, err := cold.Weights(ctx, r, codec)
	if err != nil || weights == nil {
		return nil, err
	}
	return weightsOf(weights), nil
}

// weightsOf returns weights [heads][tokens] of layers by number. It checks the layer, because side
// tensors of a forged file can name other layers than its header.
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
