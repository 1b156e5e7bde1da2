// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// scores returns the score of every row of every KV head, [kv_heads][tokens]. +Inf marks rows that are
// always kept, at most n of a head.
func (e Eviction) scores(ctx context.Context, j *job, layer, n int) ([][]float64, error) {
	all := make([][]float64, j.kvHeads)
	for h := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var err error
		switch e.Policy {
		case SinksRecent:
			all[h] = recency(j.tokens)
			force(all[h], 0, min(evictionSinks, n))
		case H2O:
			all[h], err = j.accumulated(layer, h)
			forceLast(all[h], n/2)
		case ExpectedAttention:
			all[h], err = j.expected(layer, h)
			force(all[h], 0, min(evictionSinks, n))
		case KVzip:
			all[h], err = j.reconstruction(layer, h, e.window(j.tokens))
			forceLast(all[h], min(e.window(j.tokens), n/2))
		case EMS:
			all[h], err = e.localGlobal(j, layer, h)
			force(all[h], 0, min(evictionSinks, n-n/2))
			forceLast(all[h], min(e.window(j.tokens), n/2))
		default:
			all[h], err = e.observed(j, layer, h)
			forceLast(all[h], min(e.window(j.tokens), n/2))
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

func force(score []float64, lo, hi int) {
	for t := lo; t < hi && t < len(score); t++ {
		score[t] = math.Inf(1)
	}
}

// forceLast keeps the last n rows. The papers keep the whole window. Here it is at most half of the
// budget; otherwise a small budget would hold only the window.
func forceLast(score []float64, n int) { force(score, len(score)-n, len(score)) }

func recency(tokens int) []float64 {
	s := make([]float64, tokens)
	for t := range s {
		s[t] = float64(t)
	}
	return s
}

// observed returns the attention of the last queries, averaged over queries and query heads and
// then over neighbouring rows.
func (e Eviction) observed(j *job, layer, kvHead int) ([]float64, error) {
	w := e.window(j.tokens)
	score := make([]float64, j.tokens)
	err := j.attention(layer, kvHead, j.tokens-w, func(_ int, p []float32) {
		for t, x := range p {
			score[t] += float64(x) / float64(w*j.gqa)
		}
	})
	pool := e.Pool
	if pool == 0 {
		pool = snapPool
	}
	return smooth(score, pool), err
}

// smooth averages over width neighbours. Rows beyond the ends count as 0, as with the padding of the
// papers.
func smooth(x []float64, width int) []float64 {
	y := make([]float64, len(x))
	for i := range x {
		for t := max(0, i-width/2); t <= min(len(x)-1, i+width/2); t++ {
			y[i] += x[t] / float64(width)
		}
	}
	return y
}

// accumulated returns the sum of the attention of all queries.
func (j *job) accumulated(layer, kvHead int) ([]float64, error) {
	score := make([]float64, j.tokens)
	return score, j.attention(layer, kvHead, 0, func(_ int, p []float32) {
		for t, x := range p {
			score[t] += float64(x)
		}
	})
}

// localGlobal returns the smoothed mean attention of the last queries, plus the mean attention of all
// queries that see the row.
func (e Eviction) localGlobal(j *job, layer, kvHead int) ([]float64, error) {
	local, err := e.observed(j, layer, kvHead)
	if err != nil {
		return nil, err
	}
	global, err := j.accumulated(layer, kvHead)
	if err != nil {
		return nil, err
	}
	for t := range local {
		local[t] += global[t] / float64((j.tokens-t)*j.gqa)
	}
	return local, nil
}

// reconstruction returns the largest attention that a query of the second half, at least gap tokens
// after the row, gives it.
func (j *job) reconstruction(layer, kvHead, gap int) ([]float64, error) {
	score := make([]float64, j.tokens)
	return score, j.attention(layer, kvHead, j.tokens/2, func(query int, p []float32) {
		for t := 0; t <= query-gap; t++ {
			score[t] = max(score[t], float64(p[t]))
		}
	})
}

// attention calls use with the causal attention of every query from first on, for each query head of
// a KV head. p[t] is the probability of row t <= query. p is valid only during the call.
func (j *job) attention(layer, kvHead, first int, use func(query int, p []float32)) error {
	l := &j.c.Layers[layer]
	k := j.k(l.K, kvHead)
	scores := make([]float32, min(attentionChunk, j.tokens-first)*j.tokens)
	scale := 1 / math.Sqrt(float64(j.dimK))
	for g := range j.gqa {
		q := j.k(l.Q, kvHead*j.gqa+g)
		for start := first; start < j.tokens; start += attentionChunk {
			n := min(attentionChunk, j.tokens-start)
			seen := start + n
			part := cut(q, start, seen).Data
			err := j.engine.F32(scores, part, k.Data[:seen*k.Dim], n, seen, k.Dim)
			if err != nil {
				return err
			}
			for i := range n {
				p := scores[i*seen : i*seen+start+i+1]
				softmax(p, scale)
				use(start+i, p)
			}
		}
	}
	return nil
}

// softmax replaces p with the softmax of scale*p.
func softmax(p []float32, scale float64) {
	top := math.Inf(-1)
	for _, x := range p {
		top = max(top, float64(x))
	}
	var sum float64
	for i, x := range p {
		e := math.Exp(scale * (float64(x) - top))
		p[i] = float32(e)
		sum += e
	}
	for i := range p {
		p[i] = float32(float64(p[i]) / sum)
	}
}

// expected returns, for every row but the sinks, |v| times the attention of Gaussian queries at the
// next positions: softmax(q k/sqrt(d) + k' C k/(2d)), with q the mean and C the covariance of the
// queries without RoPE, rotated by the mean rotation of those positions.
func (j *job) expected(layer, kvHead int) ([]float64, error) {
	l := &j.c.Layers[layer]
	k, v := j.k(l.K, kvHead), j.v(l.V, kvHead)
	score := make([]float64, j.tokens)
	first := min(evictionSinks, j.tokens-1)
	product := make([]float32, len(k.Data))
	for g := range j.gqa {
		mean, cov, err := j.futureQueries(layer, kvHead*j.gqa+g, first)
		if err != nil {
			return nil, err
		}
		if err := j.engine.F32(product, k.Data, cov, j.tokens, k.Dim, k.Dim); err != nil {
			return nil, err
		}
		d := float64(k.Dim)
		p := make([]float32, j.tokens)
		for t := range p {
			row := k.Row(t)
			turned := product[t*k.Dim : (t+1)*k.Dim]
			p[t] = float32(dot(row, mean)/math.Sqrt(d) + dot(row, turned)/(2*d))
		}
		softmax(p[first:], 1)
		for t := first; t < j.tokens; t++ {
			score[t] += float64(p[t]) / float64(j.gqa)
		}
	}
	for t := range score {
		score[t] *= norm(v.Row(t))
	}
	return score, nil
}

// futureQueries estimates mean and covariance [head_dim, head_dim] of the queries of one head at the
// positions after the context, from the queries from first on.
func (j *job) futureQueries(layer, head, first int) (mean, cov []float32, err error) {
	q := j.k(j.c.Layers[layer].Q, head)
	rope := j.c.Geometry.Rope
	freq := rope.Frequencies()
	dim, n := q.Dim, j.tokens-first
	x := make([]float32, n*dim)
	copy(x, q.Data[first*dim:])
	sum := make([]float64, dim)
	for i := range n {
		row := x[i*dim : (i+1)*dim]
		for p, f := range freq {
			sin, cos := math.Sincos(-f * float64(first+i))
			turn(row, rope, p, cos, sin)
		}
		addScaled(sum, 1/float64(n), row)
	}
	centred := make([]float32, dim*n) // transposed
	for i := range n {
		for c := range dim {
			centred[c*n+i] = float32((float64(x[i*dim+c]) - sum[c]) / math.Sqrt(float64(n)))
		}
	}
	cov = make([]float32, dim*dim)
	if err := j.engine.F32(cov, centred, centred, dim, dim, n); err != nil {
		return nil, nil, err
	}
	// The mean rotation of the next positions, applied to mean and covariance.
	cos, sin := make([]float64, len(freq)), make([]float64, len(freq))
	for i, f := range freq {
		for p := range futureHorizon {
			s, c := math.Sincos(f * float64(j.tokens+p))
			cos[i], sin[i] = cos[i]+c/futureHorizon, sin[i]+s/futureHorizon
		}
	}
	rotate := func(row []float32) {
		for i := range freq {
			turn(row, rope, i, cos[i], sin[i])
		}
	}
	mean = make([]float32, dim)
	for c := range mean {
		mean[c] = float32(sum[c])
	}
	rotate(mean)
	// R C R': first the rows, then, because C is symmetric, the rows of the transpose.
	for range 2 {
		for c := range dim {
			rotate(cov[c*dim : (c+1)*dim])
		}
		transpose(cov, dim)
	}
	return mean, cov, nil
}

// turn rotates pair i of the components that RoPE rotates together.
func turn(row []float32, rope quant.Rope, i int, cos, sin float64) {
	a, b := i, i+rope.RotaryDim/2
	if rope.Layout == quant.RopeInterleaved {
		a, b = 2*i, 2*i+1
	}
	x, y := float64(row[a]), float64(row[b])
	row[a], row[b] = float32(x*cos-y*sin), float32(x*sin+y*cos)
}

func transpose(x []float32, n int) {
	for i := range n {
		for c := range i {
			x[i*n+c], x[c*n+i] = x[c*n+i], x[i*n+c]
		}
	}
}
