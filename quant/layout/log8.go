// SPDX-License-Identifier: Apache-2.0

package layout

import "math"

// Log8Zero is the 8-bit logarithm of a scale of zero.
const Log8Zero = 255

// log8Steps are the 8-bit logarithmic steps of an octave.
const log8Steps = 16

// log8Frac[i] is 2^(-i/16) and log8Mid[i] is 2^(-(i+1/2)/16), rounded to float32 from constants
// so that they are the same on every machine. log8_test.go derives them again.
var (
	log8Frac = [log8Steps]float32{
		1, 0.9576032807, 0.9170040432, 0.8781260802, 0.8408964153, 0.805245166,
		0.7711054127, 0.738413073, 0.7071067812, 0.6771277735, 0.6484197773, 0.620928906,
		0.5946035575, 0.5693943174, 0.5452538663, 0.5221368912,
	}
	log8Mid = [log8Steps]float32{
		0.9785720621, 0.9370838171, 0.8973545375, 0.8593096491, 0.8228777391, 0.7879904226,
		0.7545822138, 0.7225904035, 0.691954941, 0.6626183216, 0.6345254786, 0.60762368,
		0.5818624294, 0.5571933713, 0.5335702003, 0.5109485743,
	}
)

// Log8Scale returns the scale that stands for the 8-bit logarithm k below base:
// base * 2^(-k/16), in float32 as base*frac[k%16] rounded once, then an exact power of two; 255
// stands for zero.
func Log8Scale(base float32, k uint8) float32 {
	if k == Log8Zero {
		return 0
	}
	return float32(float32(base*log8Frac[k%log8Steps]) * pow2(-int(k/log8Steps)))
}

// Log8Bound returns the scale below which the 8-bit logarithm is more than k, where the nearest is
// wanted: base * 2^(-(k+1/2)/16), rounded as Log8Scale. A scale of exactly the bound takes k.
func Log8Bound(base float32, k uint8) float32 {
	return float32(float32(base*log8Mid[k%log8Steps]) * pow2(-int(k/log8Steps)))
}

// pow2 returns 2^e exactly, for e in [-149, 127].
func pow2(e int) float32 { return float32(math.Ldexp(1, e)) }
