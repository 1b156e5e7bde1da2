// SPDX-License-Identifier: Apache-2.0

package importance

import "math"

// softmax turns scores into probabilities in place; false where no score is above -Inf.
func softmax(s []float64) bool {
	top := math.Inf(-1)
	for _, x := range s {
		top = max(top, x)
	}
	if math.IsInf(top, -1) {
		return false
	}
	var sum float64
	for i, x := range s {
		s[i] = math.Exp(x - top)
		sum += s[i]
	}
	for i := range s {
		s[i] /= sum
	}
	return true
}

func dot(a, b []float32) (s float64) {
	for i, x := range a {
		s += float64(x) * float64(b[i])
	}
	return s
}

func energy(a []float32) float64 { return dot(a, a) }
