// SPDX-License-Identifier: Apache-2.0

package codec

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant/quanttest"
)

// BenchmarkHadamard measures the rotation of 32 rows, which stay in the nearest cache.
func BenchmarkHadamard(b *testing.B) {
	for _, k := range append([]*Kernels{Generic()}, Native()...) {
		for _, dim := range []int{64, 80, 128, 256} {
			b.Run(fmt.Sprintf("backend=cpu-%s/head_dim=%d", k.isa, dim), func(b *testing.B) {
				rot, err := NewRotation(dim, 1)
				require.NoError(b, err)
				x := quanttest.Rows(quanttest.Gaussian, tileRows, dim, 1).Data
				b.SetBytes(int64(4 * len(x)))
				for b.Loop() {
					k.Forward(rot, x, tileRows, dim)
					k.Inverse(rot, x, tileRows, dim) // or values would grow
				}
				b.ReportMetric(2*float64(len(x))*float64(b.N)/float64(b.Elapsed().Nanoseconds()),
					"Gvalues/s")
			})
		}
	}
}
