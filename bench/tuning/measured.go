// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/bench/quality"
)

// Measured holds what was measured of one choice of settings.
type Measured struct {
	Texts []string
	Bits  []float64
	// KL and BitsPerValue are [texts][rates].
	KL, BitsPerValue [][]float64
	// Found and Exact count the answers that kvist finds at the lowest rate, and the exact cache.
	Found, Exact, Asked int
	// Lost is the mean share of probability lost (see Objective), [contexts].
	Lost []float64
}

// LogKL returns the mean log KL over the rates of a text.
func (r *Measured) LogKL(text int) float64 {
	var sum float64
	for _, v := range r.KL[text] {
		sum += math.Log(max(v, 1e-9))
	}
	return sum / float64(len(r.KL[text]))
}

// MeanLogKL returns the mean over texts and rates of log KL.
func (r *Measured) MeanLogKL() float64 {
	var sum float64
	for i := range r.KL {
		sum += r.LogKL(i)
	}
	return sum / float64(len(r.KL))
}

// MeanLost returns the mean of Lost, 0 without questions.
func (r *Measured) MeanLost() float64 {
	if len(r.Lost) == 0 {
		return 0
	}
	var sum float64
	for _, v := range r.Lost {
		sum += v
	}
	return sum / float64(len(r.Lost))
}

// Compare returns the geometric mean of KL of b over KL of a, and the mean of Lost of b minus that of
// a, with intervals over texts and contexts.
//
// Errors: quant.ErrShape if texts or rates differ.
func Compare(a, b *Measured) (ratio, lost quality.Interval, err error) {
	if !slices.Equal(a.Texts, b.Texts) || !slices.Equal(a.Bits, b.Bits) || len(a.Lost) != len(b.Lost) {
		return ratio, lost, shapef("compare", "measured on %s at %v and on %s at %v",
			strings.Join(a.Texts, " "), a.Bits, strings.Join(b.Texts, " "), b.Bits)
	}
	logs := make([]float64, len(a.KL))
	for i := range logs {
		logs[i] = b.LogKL(i) - a.LogKL(i)
	}
	ratio = quality.Bootstrap(logs)
	ratio.Mean, ratio.Low, ratio.High = math.Exp(ratio.Mean), math.Exp(ratio.Low), math.Exp(ratio.High)
	if len(a.Lost) > 0 {
		diff := make([]float64, len(a.Lost))
		for i := range diff {
			diff[i] = b.Lost[i] - a.Lost[i]
		}
		lost = quality.Bootstrap(diff)
	}
	return ratio, lost, nil
}
