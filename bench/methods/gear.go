// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/kvist-project/kvist/quant"
)

// GEAR approximates X by D + L + S: D the groups of KIVI, S sparse outliers kept at f16, and L a
// low-rank approximation, per head, of the error of D.
//
// Outliers are the Share/2 largest and Share/2 smallest values of every channel of K and of
// every token of V (all KV heads of the layer together), rounded up. L = A B^T with A [tokens,
// rank] and B [dim, rank] from power iteration.
//
// Bytes of a layer: bits/8 a value, 4 a group of 64, 2*(tokens + dim)*rank a head and side, and
// per outlier 2 for the value and 2 for its index (4 if an index exceeds 65,535).
//
// Source: GEAR (2024, arXiv 2403.05527), with the KIVI quantizer (its GEAR with KIVI backbone:
// groups of 64, s = 2 %, rank 4). Deviations: no streaming buffer of exact tokens, the rank of
// the prefill; an outlier decodes to its f16 value without L.
type GEAR struct {
	Bits  int     // 1 to 8
	Rank  int     // 0: 4
	Share float64 // of values kept as outliers, 0: 0.02
}

const (
	gearGroup = 64
	gearRank  = 4
	gearShare = 0.02
	gearLoops = 8 // power iterations; the paper's code runs a few
)

// Name returns "gear2".
func (g GEAR) Name() string {
	var args []string
	if g.Rank != 0 && g.Rank != gearRank {
		args = append(args, "rank="+strconv.Itoa(g.Rank))
	}
	if g.Share != 0 && g.Share != gearShare {
		args = append(args, "share="+formatShare(g.Share))
	}
	return withArgs("gear"+strconv.Itoa(g.Bits), args)
}

// Source names the paper.
func (g GEAR) Source() string {
	return "GEAR, arXiv 2403.05527; KIVI groups of 64, no buffer of exact tokens"
}

// Compress implements Method.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrRange.
func (g GEAR) Compress(ctx context.Context, c *Context) (*Cache, error) {
	if g.Rank == 0 {
		g.Rank = gearRank
	}
	if g.Share == 0 {
		g.Share = gearShare
	}
	if g.Bits < 1 || g.Bits > 8 || g.Rank < 0 || g.Rank > 64 || !(g.Share > 0 && g.Share < 1) {
		return nil, fmt.Errorf("kvist/methods: %s: bits %d, rank %d, share %g, "+
			"want 1 to 8, 1 to 64, (0, 1): %w", g.Name(), g.Bits, g.Rank, g.Share,
			quant.ErrUnsupported)
	}
	return eachLayer(ctx, g, c, false, func(j *job, layer int, out *CacheLayer) (int64, error) {
		l := c.Layers[layer]
		bytes := int64(0)
		skip, n := g.outliersK(j.shapeOf, l.K)
		for h := range j.kvHeads {
			src, dst := j.k(l.K, h), j.k(out.K, h)
			part := skip[h*len(src.Data) : (h+1)*len(src.Data)]
			m, err := g.head(dst, src, part, func() (int64, error) {
				return affineChannels(dst, src, part, g.Bits, gearGroup)
			})
			if err != nil {
				return 0, fmt.Errorf("rows of K, kv_head %d: %w", h, err)
			}
			bytes += m
		}
		bytes += n
		skip, n = g.outliersV(j.shapeOf, l.V)
		for h := range j.kvHeads {
			src, dst := j.v(l.V, h), j.v(out.V, h)
			part := skip[h*len(src.Data) : (h+1)*len(src.Data)]
			m, err := g.head(dst, src, part, func() (int64, error) {
				return affineTokens(dst, src, part, g.Bits, gearGroup)
			})
			if err != nil {
				return 0, fmt.Errorf("rows of V, kv_head %d: %w", h, err)
			}
			bytes += m
		}
		return bytes + n, nil
	})
}

// head codes one side of one head: outliers, groups and low rank.
func (g GEAR) head(dst, src quant.Rows, skip []bool, groups func() (int64, error)) (int64, error) {
	bytes, err := groups()
	if err != nil {
		return 0, err
	}
	residual := make([]float32, len(src.Data))
	for i, x := range src.Data {
		if skip[i] {
			if dst.Data[i], err = halfOf(x); err != nil {
				return 0, fmt.Errorf("row %d: %w", i/src.Dim, err)
			}
			continue
		}
		residual[i] = x - dst.Data[i]
	}
	a, b, err := lowRank(residual, src.Len(), src.Dim, g.Rank)
	if err != nil {
		return 0, err
	}
	for r := range src.Len() {
		for i := range src.Dim {
			at := r*src.Dim + i
			if skip[at] {
				continue
			}
			for k := range g.Rank {
				dst.Data[at] += a[k][r] * b[k][i]
			}
		}
	}
	return bytes + 2*int64(g.Rank)*int64(src.Len()+src.Dim), nil
}

// outliersK marks the outliers of every channel over the tokens, and returns their bytes.
func (g GEAR) outliersK(s shapeOf, x []float32) ([]bool, int64) {
	skip := make([]bool, len(x))
	at := make([]int, s.tokens)
	var bytes int64
	for h := range s.kvHeads {
		for i := range s.dimK {
			for t := range at {
				at[t] = (h*s.tokens+t)*s.dimK + i
			}
			bytes += g.mark(skip, x, at)
		}
	}
	return skip, bytes
}

// outliersV marks the outliers of every token over the channels of all heads.
func (g GEAR) outliersV(s shapeOf, x []float32) ([]bool, int64) {
	skip := make([]bool, len(x))
	at := make([]int, s.kvHeads*s.dimV)
	var bytes int64
	for t := range s.tokens {
		for h := range s.kvHeads {
			for i := range s.dimV {
				at[h*s.dimV+i] = (h*s.tokens+t)*s.dimV + i
			}
		}
		bytes += g.mark(skip, x, at)
	}
	return skip, bytes
}

// mark marks the largest and the smallest of the values x[at].
func (g GEAR) mark(skip []bool, x []float32, at []int) int64 {
	n := min(int(math.Ceil(g.Share/2*float64(len(at)))), len(at)/2)
	score := make([]float64, len(at))
	for i, p := range at {
		score[i] = float64(x[p])
	}
	for _, i := range topRows(score, n) {
		skip[at[i]] = true
	}
	for i, p := range at {
		score[i] = -float64(x[p])
	}
	for _, i := range topRows(score, n) {
		skip[at[i]] = true
	}
	each := int64(4)
	if len(at) > 1<<16 {
		each = 6
	}
	return 2 * int64(n) * each
}

// lowRank approximates r [rows, dim] by sum over k of a[k] b[k]^T, each factor rounded to f16:
// b spans the strongest directions, found by power iteration on r^T r, and a = r b.
func lowRank(r []float32, rows, dim, rank int) (a, b [][]float32, err error) {
	rng := rand.New(rand.NewPCG(rotationSeed, uint64(rows)))
	a, b = make([][]float32, rank), make([][]float32, rank)
	for k := range rank {
		a[k], b[k] = make([]float32, rows), make([]float32, dim)
		for i := range b[k] {
			b[k][i] = float32(rng.NormFloat64())
		}
	}
	project := func() {
		for k := range rank {
			for i := range rows {
				a[k][i] = float32(dot(r[i*dim:(i+1)*dim], b[k]))
			}
		}
	}
	for range gearLoops {
		orthonormal(b)
		project()
		sum := make([]float64, dim)
		for k := range rank {
			clear(sum)
			for i := range rows {
				x := float64(a[k][i])
				for c, y := range r[i*dim : (i+1)*dim] {
					sum[c] += x * float64(y)
				}
			}
			for c := range sum {
				b[k][c] = float32(sum[c])
			}
		}
	}
	orthonormal(b)
	project()
	for k := range rank {
		for _, side := range [][]float32{a[k], b[k]} {
			for i, x := range side {
				if side[i], err = halfOf(x); err != nil {
					return nil, nil, fmt.Errorf("low-rank factor: %w", err)
				}
			}
		}
	}
	return a, b, nil
}

// orthonormal makes vectors orthogonal to those before them and of length 1. A vector that depends on
// those before it becomes 0.
func orthonormal(b [][]float32) {
	for k := range b {
		before := norm(b[k])
		// Twice, because the first pass leaves rounding errors.
		for range 2 {
			for p := range k {
				x := dot(b[k], b[p])
				for i := range b[k] {
					b[k][i] -= float32(x * float64(b[p][i]))
				}
			}
		}
		length := norm(b[k])
		if length <= 1e-6*before {
			clear(b[k])
			continue
		}
		for i := range b[k] {
			b[k][i] = float32(float64(b[k][i]) / length)
		}
	}
}
