// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// merge merges each evicted row into the kept row with the most similar K, if it is similar enough,
// and stores the kept rows. It merges nothing into sinks, because their rows hold no content.
func (e Eviction) merge(j *job, layer int, out *CacheLayer, scores [][]float64,
	kept [][]int) (int64, error) {
	out.Keep = make([]bool, j.kvHeads*j.tokens)
	out.Bias = make([]float32, j.kvHeads*j.tokens)
	var bytes int64
	for h, rows := range kept {
		k, v := j.k(j.c.Layers[layer].K, h), j.v(j.c.Layers[layer].V, h)
		target, err := nearestRows(j, k, rows)
		if err != nil {
			return 0, err
		}
		count := make([]int, j.tokens)
		mass := make([]float64, j.tokens)
		sumK, sumV := make([]float64, len(k.Data)), make([]float64, len(v.Data))
		for t := range j.tokens {
			to := target[t]
			if to < 0 {
				continue
			}
			w := mergeWeight(scores[h][t])
			count[to]++
			mass[to] += w
			addScaled(sumK[to*k.Dim:(to+1)*k.Dim], w, k.Row(t))
			addScaled(sumV[to*v.Dim:(to+1)*v.Dim], w, v.Row(t))
		}
		for _, t := range rows {
			out.Keep[h*j.tokens+t] = true
			out.Bias[h*j.tokens+t] = float32(math.Log(float64(count[t])))
			for _, side := range []struct {
				dst quant.Rows
				sum []float64
			}{{j.k(out.K, h), sumK}, {j.v(out.V, h), sumV}} {
				row := side.dst.Row(t)
				for i := range row {
					x, err := halfOf(float32(side.sum[t*side.dst.Dim+i] / mass[t]))
					if err != nil {
						return 0, fmt.Errorf("kv_head %d, token %d: %w", h, t, err)
					}
					row[i] = x
				}
				bytes += 2 * int64(len(row))
			}
		}
		bytes += 2 * int64(len(rows))
	}
	return bytes, nil
}

// mergeWeight turns a score into the weight of a row in a mean. Rows that are always kept have the
// largest weight that a score can give: a probability of 1.
func mergeWeight(score float64) float64 {
	if math.IsInf(score, 1) {
		return 1
	}
	return score + 1e-6
}

func addScaled(dst []float64, w float64, src []float32) {
	for i, x := range src {
		dst[i] += w * float64(x)
	}
}

// nearestRows returns for every token the kept row that it merges into: itself if it is kept,
// otherwise the row with the largest cosine, or -1 if none reaches the threshold.
func nearestRows(j *job, k quant.Rows, kept []int) ([]int, error) {
	unit := func(dst []float32, t int) {
		if n := norm(k.Row(t)); n > 0 {
			for i, x := range k.Row(t) {
				dst[i] = float32(float64(x) / n)
			}
		}
	}
	target := make([]int, j.tokens)
	for t := range target {
		target[t] = -1
	}
	var open []int // kept rows that others may merge into
	for _, t := range kept {
		target[t] = t
		if t >= evictionSinks {
			open = append(open, t)
		}
	}
	if len(open) == 0 {
		return target, nil
	}
	centres := make([]float32, len(open)*k.Dim)
	for i, t := range open {
		unit(centres[i*k.Dim:(i+1)*k.Dim], t)
	}
	var rest []int
	for t := range target {
		if target[t] < 0 && t >= evictionSinks {
			rest = append(rest, t)
		}
	}
	for len(rest) > 0 {
		part := rest[:min(attentionChunk, len(rest))]
		rest = rest[len(part):]
		x := make([]float32, len(part)*k.Dim)
		for i, t := range part {
			unit(x[i*k.Dim:(i+1)*k.Dim], t)
		}
		cos := make([]float32, len(part)*len(open))
		if err := j.engine.F32(cos, x, centres, len(part), len(open), k.Dim); err != nil {
			return nil, err
		}
		for i, t := range part {
			best := float32(emsSimilarity)
			for o, c := range cos[i*len(open) : (i+1)*len(open)] {
				if c >= best && (target[t] < 0 || c > best) {
					best, target[t] = c, open[o]
				}
			}
		}
	}
	return target, nil
}
