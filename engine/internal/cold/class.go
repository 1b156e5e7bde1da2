// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"math"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/weigh"
)

// A token's step goes as the power -weightPower of its weight, the weights of a head levelled to a
// root mean square of 1 and lifted by weightFloor, so that none is worth nothing. Sinks take
// 2^(sinkStep/8) finer steps than the mean token. Chosen in the model on two calibration texts,
// which the profile had not seen. Divergence at 1.3 bits for powers of 0.85, 1 and 1.2: 0.0074, 0.0062,
// 0.0055 on recipes, 0.0055, 0.0049, 0.0034 on letters. Weights averaged over five neighbours double
// it (0.0098 for 0.0048 at 1.8 bits); a floor of 0.02 makes no difference, one of 0.2 a small one.
const (
	weightPower = 1.2
	weightFloor = 0.05
	sinkStep    = 32
)

// sinkClass is the class of the first tokens; class midClass adds nothing to the step.
const (
	sinkClass = archive.NumTokenClasses - 1
	midClass  = 7
)

func classSteps() (s [archive.NumTokenClasses]int8) {
	for k := range sinkClass {
		s[k] = int8(4 * (midClass - k))
	}
	s[sinkClass] = -sinkStep
	return s
}

// classBounds[k] is the weight, lifted, from which on a token is in class k+1: classes are half an octave
// of the power of weights apart.
var classBounds = func() (b [sinkClass - 1]float32) {
	for k := range b {
		b[k] = float32(math.Exp2((float64(k-midClass) + 0.5) / (2 * weightPower)))
	}
	return b
}()

// classOf gives every token the class of its weight: the step goes as a power of it. The first tokens are
// sinks whether tokens are weighed or not: without that, the future-attention error of archives of captures
// without queries was 2 to 4 times as large.
//
// The first tokens, outside the layer's window, are not stored, and their weights have no say.
func classOf(l *input.Layer, w []float32, sinks, outside int) []uint8 {
	class := make([]uint8, l.Tokens)
	if w != nil {
		w = weigh.LevelHead(w, max(sinks, outside))
	}
	for t := range class {
		class[t] = midClass
		if t < sinks && l.HasV {
			class[t] = sinkClass
			continue
		}
		if w == nil {
			continue
		}
		class[t] = ClassOf(w[t])
	}
	return class
}
