// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"sync"
	"sync/atomic"
)

// parallel cuts [0, n) into ranges of at least least items and calls do for each of them, on up to
// workers goroutines.
func parallel(workers, n, least int, do func(lo, hi int)) {
	w := min(workers, n/max(least, 1))
	if w <= 1 {
		do(0, n)
		return
	}
	var wg sync.WaitGroup
	for i := 1; i < w; i++ {
		wg.Go(func() { do(n*i/w, n*(i+1)/w) })
	}
	do(0, n/w)
	wg.Wait()
}

// parallelItems calls do for every item in [0, n) on up to workers goroutines, each of which takes
// the next item when it is free. worker, in [0, workers), is the number of the goroutine, for its
// scratch memory. The first error ends the work.
func parallelItems(workers, n int, do func(worker, item int) error) error {
	workers = max(1, min(workers, n))
	errs := make([]error, workers)
	var next, failed atomic.Int64
	run := func(w int) {
		for failed.Load() == 0 {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			if err := do(w, i); err != nil {
				errs[w] = err
				failed.Store(1)
				return
			}
		}
	}
	var wg sync.WaitGroup
	for w := 1; w < workers; w++ {
		wg.Go(func() { run(w) })
	}
	run(0)
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// exp32 splits x = n*ln2/256 + r, so that e^x = 2^(n/256) * e^r with |r| < 0.0014, where three
// terms of the series are exact to 5e-10. ln2/256 is the sum of two constants, the
// first of 9 bits so that its product with n is exact. A result below e^-87, about the least normal
// float32, is 0.
const (
	expScale = 256 / math.Ln2
	expHi    = 355.0 / (1 << 17) // ln2/256 to 9 bits
	expLo    = math.Ln2/256 - expHi
	expMagic = 3 << 22 // added to a float32, it leaves the nearest integer in the low bits
	expMin   = -87
	expMax   = 88
)

// expTable holds 2^(i/256).
var expTable = func() (t [256]float32) {
	for i := range t {
		t[i] = float32(math.Exp2(float64(i) / 256))
	}
	return t
}()

// exp32 returns e^x in float32 with a relative error below 2e-7; 0 below -87, e^88 above 88, NaN
// for NaN. Softmax needs one per query, head and token, and math.Exp takes several times as long.
func exp32(x float32) float32 {
	if x < expMin {
		return 0
	}
	if x > expMax {
		x = expMax
	}
	n := x*expScale + expMagic
	bits := math.Float32bits(n)
	n -= expMagic
	r := x - n*expHi - n*expLo
	p := r + r*r*0.5
	// Adding to the exponent multiplies by 2^floor(n/256); the shift drops the other bits.
	scale := math.Float32frombits(math.Float32bits(expTable[bits&255]) + bits>>8<<23)
	return scale + scale*p
}

// expSum writes exp32(x - top) to dst, which may be x, and returns their sum.
func expSum(dst, x []float32, top float32) float32 {
	var sum float32
	dst = dst[:len(x)]
	for i, v := range x {
		e := exp32(v - top)
		dst[i] = e
		sum += e
	}
	return sum
}

// largest returns the largest of x and top, ignoring NaN. The built-in max takes several times as
// long because it handles NaN and -0.
func largest(x []float32, top float32) float32 {
	for _, v := range x {
		if v > top {
			top = v
		}
	}
	return top
}

// rmsNorm writes x / sqrt(mean(x^2) + eps) * w to dst for n rows.
func rmsNorm(dst, x, w []float32, n int, eps float64) {
	k := len(w)
	for t := range n {
		row, out := x[t*k:(t+1)*k], dst[t*k:(t+1)*k]
		var s0, s1 float64
		i := 0
		for ; i+1 < len(row); i += 2 {
			s0 += float64(row[i]) * float64(row[i])
			s1 += float64(row[i+1]) * float64(row[i+1])
		}
		for ; i < len(row); i++ {
			s0 += float64(row[i]) * float64(row[i])
		}
		scale := float32(1 / math.Sqrt((s0+s1)/float64(k)+eps))
		for i, v := range row {
			out[i] = v * scale * w[i]
		}
	}
}

// swiglu writes silu(gate) * up to dst for n rows; gateUp has [gate, up] in each row.
func swiglu(dst, gateUp []float32, n, ffn int) {
	for t := range n {
		g := gateUp[t*2*ffn : t*2*ffn+ffn]
		u := gateUp[t*2*ffn+ffn : (t+1)*2*ffn]
		out := dst[t*ffn : (t+1)*ffn]
		for i, v := range g {
			// For v below -88 the divisor is e^88, and the quotient is close enough to 0.
			out[i] = v / (1 + exp32(-v)) * u[i]
		}
	}
}

// geglu writes gelu(gate) * up, as swiglu does, with the tanh form of GELU:
// g/2 * (1 + tanh(u)) = g / (1 + e^-2u) where u = sqrt(2/pi) * (g + 0.044715 g^3).
//
// Source: Hendrycks and Gimpel, Gaussian Error Linear Units (2016, arXiv 1606.08415).
func geglu(dst, gateUp []float32, n, ffn int) {
	const a = 2 * 0.7978845608028654 // 2 * sqrt(2/pi)
	for t := range n {
		g := gateUp[t*2*ffn : t*2*ffn+ffn]
		u := gateUp[t*2*ffn+ffn : (t+1)*2*ffn]
		out := dst[t*ffn : (t+1)*ffn]
		for i, v := range g {
			out[i] = v / (1 + exp32(-a*(v+0.044715*v*v*v))) * u[i]
		}
	}
}

// scale multiplies x by f in place.
func scale(x []float32, f float64) {
	if f == 1 {
		return
	}
	f32 := float32(f)
	for i := range x {
		x[i] *= f32
	}
}

// addRows adds b to every row of x; nil adds nothing.
func addRows(x, b []float32) {
	for ; len(b) > 0 && len(x) >= len(b); x = x[len(b):] {
		addTo(x[:len(b)], b)
	}
}

func addTo(dst, src []float32) {
	src = src[:len(dst)]
	for i := range dst {
		dst[i] += src[i]
	}
}

// LogSumExp returns log(sum(exp(x))) of logits.
func LogSumExp(x []float32) float64 {
	if len(x) == 0 {
		return math.Inf(-1)
	}
	top := largest(x, x[0])
	var sum float64
	// Float32 sums of a few hundred terms, added in float64, are fast and exact enough for
	// differences between distributions.
	var tmp [256]float32
	for len(x) > 0 {
		n := min(len(x), len(tmp))
		sum += float64(expSum(tmp[:n], x[:n], top))
		x = x[n:]
	}
	return float64(top) + math.Log(sum)
}

// Surprisal returns -log p of a token, in nats, under the distribution of a row of logits.
// token must be within the row.
func Surprisal(logits []float32, token int32) float64 {
	return LogSumExp(logits) - float64(logits[token])
}

// Argmax returns the token with the largest logit; of several, the first.
func Argmax(logits []float32) int32 {
	best := 0
	for i, v := range logits {
		if v > logits[best] {
			best = i
		}
	}
	return int32(best)
}
