// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// Oblivious returns an empty index that needs no sample: rows are rotated at random and every component has
// the same number of bits, 1 to 6. A row takes dim*bits/8 + 2 bytes, dim rounded up to a multiple of 16, and
// 4 more for L2.
//
// Errors: quant.ErrUnsupported for bits, dim or metric.
func Oblivious(dim, bits int, metric Metric, seed uint64) (*Index, error) {
	if dim <= 0 || dim > maxDim || bits < 1 || bits > trellis.MaxWidth || metric >= metrics {
		return nil, fmt.Errorf("kvist/vectors: oblivious: rows of %d values at %d bits, %s: %w", dim, bits, metric,
			quant.ErrUnsupported)
	}
	p := params{Dim: dim, Metric: metric, Seed: seed, Rotated: true,
		Cells: slices.Repeat([]uint8{uint8(bits)}, (dim+trellis.CellDim-1)/trellis.CellDim)}
	p.Head = len(p.Cells)
	p.SD = slices.Repeat([]float32{1}, p.comps())
	p.Length = float32(math.Sqrt(float64(p.comps())))
	p.Error = trellis.Distortion(bits)
	p.Slope = float32(1 / math.Sqrt(1-p.Error))
	c, err := p.finish(nil, nil, "")
	if err != nil {
		return nil, err
	}
	return newIndex(c), nil
}
