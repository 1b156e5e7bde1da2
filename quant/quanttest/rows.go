// SPDX-License-Identifier: Apache-2.0

package quanttest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/quant"
)

// Family names a kind of rows.
type Family string

// The families of rows, finite ones first.
const (
	Gaussian    Family = "gaussian"
	Zeros       Family = "zeros"
	Constant    Family = "constant"
	OneOutlier  Family = "one-outlier"  // one value 1000 times the rest
	Massive     Family = "massive"      // two channels 50 times the rest, in every row (K of real models)
	HeavyTails  Family = "heavy-tails"  // Student t with 2 degrees of freedom
	Subnormals  Family = "subnormals"   // float32 subnormals
	Tiny        Family = "tiny"         // around 1e-30
	Huge        Family = "huge"         // around 1e30, beyond the range of binary16 scales
	MixedScales Family = "mixed-scales" // rows of one block from 1e-6 to 1e3
	Coordinates Family = "coordinates"  // values that tell row and column
	WithNaN     Family = "nan"
	WithInf     Family = "inf"
)

// Finite lists the families whose rows every coding can hold, given the range of its scale.
func Finite() []Family {
	return []Family{Gaussian, Zeros, Constant, OneOutlier, Massive, HeavyTails, Subnormals, Tiny,
		MixedScales, Coordinates}
}

// Rows draws n rows of dim values of a family from a seed.
func Rows(f Family, n, dim int, seed uint64) quant.Rows {
	rng := rand.New(rand.NewPCG(seed, 0x6b76697374))
	x := quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
	for r := range n {
		row := x.Row(r)
		for i := range row {
			row[i] = value(f, rng, r, i)
		}
		switch f {
		case OneOutlier:
			row[rng.IntN(dim)] *= 1000
		case Massive:
			row[1%dim] += 50
			row[dim-1] -= 50
		case WithNaN:
			if r == n/2 {
				row[rng.IntN(dim)] = float32(math.NaN())
			}
		case WithInf:
			if r == n/2 {
				row[rng.IntN(dim)] = float32(math.Inf(-1))
			}
		}
	}
	return x
}

func value(f Family, rng *rand.Rand, r, i int) float32 {
	g := float32(rng.NormFloat64())
	switch f {
	case Zeros:
		return 0
	case Constant:
		return 1.5
	case HeavyTails:
		a, b := rng.NormFloat64(), rng.NormFloat64()
		return g / float32(math.Sqrt((a*a+b*b)/2)+1e-9)
	case Subnormals:
		return math.Float32frombits(rng.Uint32() & 0x807fffff)
	case Tiny:
		return g * 1e-30
	case Huge:
		return g * 1e30
	case MixedScales:
		return g * float32(math.Pow(10, float64(r%10)-6))
	case Coordinates:
		return float32(r%128) + float32(i)/1024
	}
	return g
}

// Codings lists every coding of this version: each format with each rule and scale form it has.
func Codings() []quant.Coding {
	var all []quant.Coding
	for _, f := range quant.Formats() {
		for rule := quant.LeastSquares; rule <= quant.InnerProduct; rule++ {
			for form := quant.ScaleF16; form <= quant.ScaleLog8; form++ {
				if c := (quant.Coding{Format: f, Rule: rule, Scale: form}); c.Validate() == nil {
					all = append(all, c)
				}
			}
		}
	}
	return all
}

// RowCounts are the row counts of the matrix: none, one, and around the usual block sizes.
func RowCounts() []int {
	if testing.Short() {
		return []int{0, 1, 7, 32, 33}
	}
	return []int{0, 1, 7, 8, 31, 32, 33, 257}
}

// Dims are the row lengths of the matrix.
func Dims() []int {
	if testing.Short() {
		return []int{8, 64, 80}
	}
	return []int{8, 64, 80, 96, 128, 256}
}
