// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// rung is a coding of the ladder that rows go down: f16, u8, lm4, lm3, lm2, lm1, gone.
type rung uint8

const (
	gone rung = iota
	lm1
	lm2
	lm3
	lm4
	u8
	f16
	rungs
)

// codings of the rungs. All rows keep their length: errors of the length add up over a long context.
var codings = [rungs]quant.Coding{
	lm1: {Format: quant.LM1, Rule: quant.LengthKeeping},
	lm2: {Format: quant.LM2, Rule: quant.LengthKeeping},
	lm3: {Format: quant.LM3, Rule: quant.LengthKeeping},
	lm4: {Format: quant.LM4, Rule: quant.LengthKeeping},
	u8:  {Format: quant.U8},
	f16: {Format: quant.F16},
}

func (r rung) coding() quant.Coding { return codings[r] }

// String returns the name of the coding.
func (r rung) String() string {
	if r == gone {
		return "dropped"
	}
	return codings[r].String()
}

// noises are the expected squared errors of a row over its energy.
var noises = func() (t [rungs]float64) {
	t[gone] = 1
	for r := lm1; r <= u8; r++ {
		t[r] = codings[r].RelativeError()
	}
	return t
}()

// noise is the factor of the row bias that the coding asks for; see backend.Block.
func (r rung) noise() float32 { return biases[r] }

var biases = func() (t [rungs]float32) {
	for r := lm1; r <= u8; r++ {
		t[r] = float32(codings[r].NoisePerScale2())
	}
	return t
}()

// sideK and sideV index what K and V have each.
const (
	sideK = iota
	sideV
	sides
)

// sizes are the classes of slots of a cache and the bytes of what is in them.
type sizes struct {
	dim     [sides]int
	class   [sides][rungs]int // of 32 rows
	sinks   [sides]int        // class of the sinks' rows
	pos     int               // class of the positions of 32 rows
	mean    int               // class of a mean of K
	classes []int64
}

func newSizes(g quant.Geometry, sinks int) *sizes {
	z := &sizes{dim: [sides]int{g.HeadDim, g.HeadDimV}}
	for s, dim := range z.dim {
		for r := lm1; r <= f16; r++ {
			z.class[s][r] = z.add(codings[r].PackedBytes(pageTokens, dim))
		}
		z.sinks[s] = z.add(codings[f16].PackedBytes(max(sinks, 1), dim))
	}
	z.pos = z.add(2 * pageTokens)
	z.mean = z.add(frame.MeanBytes(g.HeadDim))
	return z
}

// add returns the class of slots of n bytes.
func (z *sizes) add(n int) int {
	n = (n + 15) &^ 15
	for i, have := range z.classes {
		if have == int64(n) {
			return i
		}
	}
	z.classes = append(z.classes, int64(n))
	return len(z.classes) - 1
}

// bytes returns the bytes of a slot of a rung.
func (z *sizes) bytes(side int, r rung) int64 {
	if r == gone {
		return 0
	}
	return z.classes[z.class[side][r]]
}
