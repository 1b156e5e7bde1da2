// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"math"
	"slices"
	"strconv"
)

// Spread is the median and the quartiles of samples.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// Half is half the distance of the quartiles, as a share of the median.
func (s Spread) Half() float64 {
	if s.Median == 0 {
		return 0
	}
	return (s.High - s.Low) / 2 / s.Median
}

// spreadOf sorts the samples.
func spreadOf(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	slices.Sort(x)
	return Spread{digits4(quantile(x, 0.5)), digits4(quantile(x, 0.25)), digits4(quantile(x, 0.75))}
}

// quantile interpolates in sorted samples.
func quantile(x []float64, p float64) float64 {
	at := p * float64(len(x)-1)
	i := int(at)
	if i+1 >= len(x) {
		return x[len(x)-1]
	}
	return x[i] + (at-float64(i))*(x[i+1]-x[i])
}

// digits4 rounds to four digits: what a record holds of a number.
func digits4(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	y, err := strconv.ParseFloat(strconv.FormatFloat(x, 'g', 4, 64), 64)
	if err != nil {
		return x
	}
	return y
}
