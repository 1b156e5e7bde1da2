// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"math/bits"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
)

// eps is the largest relative error of one float32 rounding, 2^-24.
const eps = 1.0 / (1 << 24)

// smallestNormal is the smallest normal float32, 2^-126.
const smallestNormal = 0x1p-126

// The suite compares Attend and Relevance with float64 sums over the rows of quant.Decode. The
// bounds below are what a correct float32 backend may differ by, to first order in eps; stated
// factors cover the second order. n is head_dim.
//
//  1. An inner product of n terms, added in float32 in any order, is off by at most n*eps times the
//     sum of |q_i k_i|, which is at most |q||k|. Rounding each product adds one eps.
//
//  2. A rotation of length P takes log2 P additions, a norm and signs per pass: at most (log2 P +
//
//  2. eps of the vector's length per pass (three passes if n is not a power of two). A rotated
//     side has two rotations: q forward in the backend, K inverse in quant.Decode. unit*centroid
//     rounds each stored value once more.
//
//  3. A RoPE turn takes sine and cosine to half an ulp, two products and a sum: 4 eps. A backend
//     may compute sine and cosine in float32, of an angle that it reduced in float64.
//
//  4. The products with Scale, tanh, and the sums with count and bias round 4 times, relative to
//     the parts of the score. Row scale, |q|^2 and the products of the noise bias add (n+8) eps of
//     the bias, since |q|^2 is a sum of n terms too.
//
//  5. exp(s - top): s and top are rounded to float32, eps of each. exp is within 4 eps plus
//     eps*|s-top| (fast hardware exponentials scale their argument first).
//
//  6. Sums of weights and of V: attendTolerance.
//
//  7. A mean of K adds an inner product like item 1. A backend may take it off the largest score
//     and add it again, which rounds three times more. A metric of K rounds each value of q once or
//     twice more, and enlarges what the turn of item 3 and its own sums are off by at most the norm
//     of its inverse. A mean of V is a row whose weight is the sum of its block's weights.
//
// A score that is off by e changes exp by a factor between exp(-e) and exp(e).
func productSlack(q *backend.Queries, b *known, lengths, score float64) float64 {
	n := float64(q.HeadDim + 1)
	if b.k.Format.Rotated() {
		n += 2*rotationSlack(q.HeadDim) + 1
	}
	if b.offset != 0 {
		n += 4
	}
	if b.metric != nil {
		n += 2
	}
	return eps * (math.Abs(float64(q.Scale))*lengths*n + 2*math.Abs(score))
}

// rotationSlack is the error of one rotation, divided by eps and the vector's length: item 2.
func rotationSlack(dim int) float64 {
	log := float64(bits.Len(uint(dim)) - 1)
	if dim&(dim-1) != 0 {
		return 3 * (log + 2)
	}
	return log + 2
}

// sumSlack is item 4.
func sumSlack(s, extra, noise float64) float64 {
	if math.IsInf(extra, 0) {
		extra = 0
	}
	return eps * (4*(math.Abs(s)+math.Abs(extra)+noise) + 264*noise)
}

// tileTerms is the number of terms that a backend may add in float32 before it folds the sum into a
// more accurate one (float64, compensated, or a tree): item 6. It does not depend on the number of
// rows, so that the error does not grow with the context.
const tileTerms = 128

// tolerances bound the error of out, of lse, and of the sum of weights, relative.
type tolerances struct{ out, lse, weights float64 }

// attendTolerance bounds the error of out and lse of one head. p are the probabilities of the rows.
//
// With factors f_r = exp(+-e_r) on the weights, sum p_r |f_r - 1| <= E := sum p_r (exp(e_r) - 1),
// the sum of weights is off by at most E relative, so lse by E/(1-E), and
//
//	|out' - out| <= sum p_r (exp(e_r)-1) |v_r - out| / (1-E)
//	             <= (sum p_r (exp(e_r)-1) |v_r| + E A) / (1-E)
//
// with A = sum p_r |v_r| >= |out|, in 2-norms, which bound every component in either basis. Item 6
// adds tileTerms*eps*A; item 2 adds two rotations of V, one in the backend and one in Decode.
// Values below the smallest normal float32 may be lost in every term of a tile.
func attendTolerance(t testing.TB, q *backend.Queries, rows []scored, p []float64,
	lse float64) tolerances {
	var e, a, d float64
	for j, r := range rows {
		if p[j] == 0 {
			continue
		}
		off := probabilitySlack(r.slack, r.score, lse, 1)
		e += p[j] * off
		a += p[j] * r.vLen
		d += p[j] * off * r.vLen
	}
	if e > 0.05 {
		t.Fatalf("the tolerance is %g of the weights: this test cannot fail", e)
	}
	return tolerances{
		out: (d+e*a)/(1-e) + eps*a*(tileTerms+2*rotationSlack(q.HeadDimV)+4) +
			tileTerms*smallestNormal,
		weights: e / (1 - e),
		lse:     e/(1-e) + eps*(tileTerms+2*math.Abs(lse)),
	}
}

// probabilitySlack is the relative error of exp(score - lse)^power: items 1 to 5.
func probabilitySlack(slack, score, lse float64, power int) float64 {
	if math.IsInf(score, -1) {
		return 0
	}
	e := slack + eps*(4+2*math.Abs(score)+2*math.Abs(lse)+math.Abs(score-lse))
	return math.Expm1(e * float64(power))
}
