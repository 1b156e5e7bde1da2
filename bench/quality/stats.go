// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with its 95 % confidence interval.
type Interval struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

const (
	bootstrapDraws = 10000
	bootstrapSeed  = 20261101
	z95            = 1.959963984540054 // 97.5 % quantile of the normal distribution
)

// mean returns the arithmetic mean; NaN if x is empty.
func mean(x []float64) float64 {
	var s float64
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}

// Bootstrap returns the mean of x with the 2.5 % and 97.5 % percentiles of the means of samples
// drawn from x with replacement: 10,000 samples from a fixed seed. With fewer than two values the
// interval is the mean.
//
// Source: Efron, Bootstrap methods: another look at the jackknife (1979); percentile intervals.
func Bootstrap(x []float64) Interval {
	clusters := make([][]float64, len(x))
	for i := range x {
		clusters[i] = x[i : i+1]
	}
	return BootstrapClusters(clusters)
}

// BootstrapClusters is Bootstrap for values in clusters, such as questions about one context. It
// draws whole clusters, because the values of a cluster are not independent.
func BootstrapClusters(x [][]float64) Interval {
	sums, counts := make([]float64, 0, len(x)), make([]float64, 0, len(x))
	var sum, n float64
	for _, c := range x {
		if len(c) == 0 {
			continue
		}
		s := mean(c) * float64(len(c))
		sums, counts = append(sums, s), append(counts, float64(len(c)))
		sum, n = sum+s, n+float64(len(c))
	}
	out := Interval{Mean: sum / n, Low: sum / n, High: sum / n}
	if len(sums) < 2 {
		return out
	}
	r := rand.New(rand.NewPCG(bootstrapSeed, uint64(len(sums))))
	means := make([]float64, bootstrapDraws)
	for d := range means {
		var s, n float64
		for range sums {
			i := r.IntN(len(sums))
			s, n = s+sums[i], n+counts[i]
		}
		means[d] = s / n
	}
	slices.Sort(means)
	out.Low, out.High = quantile(means, 0.025), quantile(means, 0.975)
	return out
}

// quantile interpolates in sorted values.
func quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	f := at - float64(i)
	return sorted[i]*(1-f) + sorted[i+1]*f
}

// Wilson returns the share k/n with its 95 % score interval, which holds near 0 and 1 too.
//
// Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
func Wilson(k, n int) Interval {
	if n <= 0 {
		return Interval{Mean: math.NaN(), Low: 0, High: 1}
	}
	p, m, z2 := float64(k)/float64(n), float64(n), z95*z95
	mid := (p + z2/(2*m)) / (1 + z2/m)
	half := z95 / (1 + z2/m) * math.Sqrt(p*(1-p)/m+z2/(4*m*m))
	return Interval{Mean: p, Low: max(0, mid-half), High: min(1, mid+half)}
}

// Pair compares two methods on the same texts and questions: A minus B. Positive differences of
// KL mean that A is worse, positive differences of found that A is better.
type Pair struct {
	A string `json:"a"`
	B string `json:"b"`
	// KL is the difference of the mean divergences, nats; Ratio is the geometric mean over texts
	// of KL of A over that of B, 0 if one of them is 0.
	KL    Interval `json:"kl"`
	Ratio Interval `json:"ratio"`
	// Found is the difference of the shares of questions answered; nil without questions.
	Found *Interval `json:"found,omitempty"`
}

// pairKL compares divergences per text.
func pairKL(a, b []float64) (diff, ratio Interval) {
	d, logs := make([]float64, len(a)), make([]float64, len(a))
	positive := true
	for i := range a {
		d[i] = a[i] - b[i]
		positive = positive && a[i] > 0 && b[i] > 0
		logs[i] = math.Log(a[i]) - math.Log(b[i])
	}
	diff = Bootstrap(d)
	if !positive {
		return diff, Interval{}
	}
	ratio = Bootstrap(logs)
	return diff, Interval{Mean: math.Exp(ratio.Mean), Low: math.Exp(ratio.Low),
		High: math.Exp(ratio.High)}
}
