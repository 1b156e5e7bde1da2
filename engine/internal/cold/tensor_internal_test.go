// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

func TestFloatsOf(t *testing.T) {
	want := []float32{0.5, -2, 1e-8}
	got, err := floatsOf(floatsTensor("x", want, 3, 1), []int64{3, 1})
	require.NoError(t, err)
	require.Equal(t, want, got)

	half := profile.Tensor{Name: "x", DType: "F16", Shape: []int64{2}, Data: []byte{0, 0x38, 0, 0xc0}}
	got, err = floatsOf(half, []int64{2})
	require.NoError(t, err)
	require.Equal(t, want[:2], got)

	for _, shape := range [][]int64{nil, {1}, {2, 1}, {1, 2}} {
		_, err = floatsOf(half, shape)
		require.ErrorIs(t, err, quant.ErrShape, "%v", shape)
	}
	_, err = floatsOf(bytesTensor("x", []byte{1, 2}, 2), []int64{2})
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, `"x" is U8 [2]`)
}
