// SPDX-License-Identifier: Apache-2.0

package vectors

import "github.com/kvist-project/kvist/quant"

// rotation is a randomised Hadamard transform that mixes all components of rows of any multiple of 16.
// quant.Rotation works in windows, which keep their share of a row's energy; a second one on the reversed
// components mixes the windows.
type rotation struct{ first, second *quant.Rotation }

func newRotation(dim int, seed uint64) (*rotation, error) {
	first, err := quant.NewRotation(dim, seed)
	if err != nil {
		return nil, err
	}
	second, err := quant.NewRotation(dim, seed+1)
	return &rotation{first, second}, err
}

func (r *rotation) forward(x []float32) {
	r.first.Forward(x)
	if len(r.first.Windows()) > 1 {
		reverse(x)
		r.second.Forward(x)
	}
}

func (r *rotation) inverse(x []float32) {
	if len(r.first.Windows()) > 1 {
		r.second.Inverse(x)
		reverse(x)
	}
	r.first.Inverse(x)
}

func reverse(x []float32) {
	for i, j := 0, len(x)-1; i < j; i, j = i+1, j-1 {
		x[i], x[j] = x[j], x[i]
	}
}
