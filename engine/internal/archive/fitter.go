// SPDX-License-Identifier: Apache-2.0

package archive

import "math"

// fitter collects what the tables are made from.
type fitter struct {
	counts [numClasses][maxLevel + 2]float64
	sum    [numClasses][maxRecon + 1]float64 // of a - m over magnitudes
	n      [numClasses][maxRecon + 1]float64
	err    [numClasses]float64
	abs    [numClasses]float64 // by the class of the component alone
	all    [numClasses]float64
}

func (f *fitter) add(k, prior8 int, a float32, m uint32) {
	f.counts[k][min(m, maxLevel+1)]++
	r := min(m, maxRecon)
	d := float64(a) - float64(m)
	f.sum[k][r] += d
	f.n[k][r]++
	f.err[k] += d * d
	if p, s := classOf(prior8); s == 0 {
		f.abs[p] += float64(m)
		f.all[p]++
	}
}

// tables makes tables of the statistics so far. The fewer there are, the more of t is mixed in.
func (f *fitter) tables(t *Tables) *Tables {
	out := &Tables{Prior: t.Prior}
	const faith = 200 // observations that the old tables are worth
	for k := range out.Freq {
		counts := make([]float64, maxLevel+2)
		var total float64
		for m := range counts {
			counts[m] = f.counts[k][m] + faith*float64(t.Freq[k][m])/probOne
			total += f.counts[k][m]
		}
		out.Freq[k] = normalise(counts)
		out.MeanAbs[k] = uint16(min(65535,
			math.Round((f.abs[k]*4096+faith*float64(t.MeanAbs[k]))/(f.all[k]+faith))))
		for r := range maxRecon {
			d := (f.sum[k][r+1]*256 - 20*float64(t.Recon[k][r])) / (f.n[k][r+1] + 20)
			out.Recon[k][r] = int8(min(max(math.Round(-d), -64), 64))
		}
		out.Noise[k] = uint16(min(65535,
			math.Round((f.err[k]*4096+faith*float64(t.Noise[k]))/(total+faith))))
	}
	return out
}

// DefaultTables are those of a Laplace density, from which fitting starts.
func DefaultTables() *Tables {
	t := &Tables{Prior: 8 << 12}
	for k := range t.Freq {
		// P(|x| > u) = exp(-sqrt(2) u / deviation); levels change at m - 0.4, the first at 0.6.
		dev := math.Exp2(float64(classBase+2*k) / 8)
		tail := func(m int) float64 {
			if m == 0 {
				return 1
			}
			return math.Exp(-math.Sqrt2 * (float64(m) - 0.4) / dev)
		}
		counts := make([]float64, maxLevel+2)
		var mean float64
		for m := range maxLevel + 1 {
			counts[m] = tail(m) - tail(m+1)
			mean += float64(m) * counts[m]
		}
		counts[maxLevel+1] = tail(maxLevel + 1)
		t.Freq[k] = normalise(counts)
		t.MeanAbs[k] = uint16(max(1, math.Round(4096*mean)))
		t.Noise[k] = uint16(math.Round(4096 * min(dev*dev, 1./12)))
	}
	return t
}
