// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"math"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/importance"
)

// apart returns how many of the first n tokens of a layer have no say in the scale of weights: sinks, and
// those that no later query can see.
func (c *Weigher) apart(l *input.Layer, n int) int {
	return max(c.Sinks, int(c.Geo.Outside(l.Number, int64(n))))
}

// ofLayer returns the profile as a layer with a window needs it: who saw a token is told by the window,
// and tokens that no later query can see stand apart as sinks do.
func (c *Weigher) ofLayer(l *input.Layer, p importance.Weighting) importance.Weighting {
	if w := c.Geo.WindowOf(l.Number); w > 0 && w < int64(l.Tokens) {
		p.Attention.Sees = w
		p.Shape.Sinks = max(p.Shape.Sinks, int(c.Geo.Outside(l.Number, int64(l.Tokens))))
	}
	return p
}

// rootMeanSquare of nothing is 0.
func RootMeanSquare(w []float32) float64 {
	return math.Sqrt(input.Energy(w) / float64(max(1, len(w))))
}
