// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// queriesFor draws n queries. Query i lists the blocks lists[i].
func queriesFor(n, group, dimK, dimV int, seed uint64, lists [][]int32) *backend.Queries {
	q := &backend.Queries{
		Q:     quanttest.Rows(quanttest.Gaussian, n*group, dimK, seed).Data,
		Group: group, HeadDim: dimK, HeadDimV: dimV, Scale: float32(1 / math.Sqrt(float64(dimK))),
		BlockPtr: []int32{0},
	}
	for i := range n {
		q.BlockIdx = append(q.BlockIdx, lists[i]...)
		q.BlockPtr = append(q.BlockPtr, int32(len(q.BlockIdx)))
	}
	return q
}

// mixture draws blocks and queries that use all features at once.
type mixture struct {
	blocks []known
	q      *backend.Queries
}

func drawMixture(a *arena, b backend.Backend, n uint64) mixture {
	rng := rand.New(rand.NewPCG(n, 77))
	dk, dv := dims()[rng.IntN(len(dims()))], dims()[rng.IntN(len(dims()))]
	ks, vs := codingsFor(b, backend.OpAttend, dk), codingsFor(b, backend.OpAttend, dv)
	fams := []quanttest.Family{quanttest.Gaussian, quanttest.Gaussian, quanttest.HeavyTails,
		quanttest.Zeros, quanttest.Constant, quanttest.Tiny, quanttest.Subnormals}
	// With heavy tails in K no useful tolerance bounds a score.
	famsK := append([]quanttest.Family{quanttest.Massive}, fams[3:]...)
	famsK = append(famsK, quanttest.Gaussian, quanttest.Gaussian)
	rope := drawRope(rng, dk)
	var blocks []known
	base := int64(rng.IntN(1000))
	for i := range 3 + rng.IntN(6) {
		s := spec{rows: rng.IntN(70), k: ks[rng.IntN(len(ks))], v: vs[rng.IntN(len(vs))], seedK: n,
			seedV: n + 1, draw: n*100 + uint64(i), base: base, rope: rope,
			kFam: famsK[rng.IntN(len(famsK))], vFam: fams[rng.IntN(len(fams))]}
		if rng.IntN(2) == 0 {
			for _, p := range rng.Perm(s.rows) {
				s.pos = append(s.pos, uint16(3*p))
			}
		}
		if rng.IntN(2) == 0 {
			for range s.rows {
				s.count = append(s.count, uint16(1+rng.IntN(1<<rng.IntN(16))))
			}
		}
		if rng.IntN(2) == 0 {
			for range s.rows {
				s.bias = append(s.bias, float32(rng.NormFloat64()))
			}
		}
		if rng.IntN(2) == 0 {
			s.noise = float32(s.k.NoisePerScale2())
		}
		if rng.IntN(2) == 0 {
			s.offset = int32(rng.IntN(20001) - 10000)
		}
		drawTerms(rng, &s, dk, dv)
		base += int64(s.rows) * int64(max(1, s.stride))
		blocks = append(blocks, place(a, s, dk, dv))
	}
	lists := make([][]int32, 1+rng.IntN(7))
	for i := range lists {
		lists[i] = randomList(rng, len(blocks), lists[:i])
	}
	q := queriesFor(len(lists), 1+rng.IntN(9), dk, dv, n, lists)
	decorate(rng, q, base)
	return mixture{blocks, q}
}

// randomList returns an empty list, the list of an earlier query, or a random one.
func randomList(rng *rand.Rand, blocks int, earlier [][]int32) []int32 {
	switch k := rng.IntN(6); {
	case k == 0:
		return nil
	case k < 3 && len(earlier) > 0:
		return earlier[len(earlier)-1]
	}
	var list []int32
	for range 1 + rng.IntN(2*blocks) {
		list = append(list, int32(rng.IntN(blocks)))
	}
	return list
}

// decorate sets positions, window and softcap at random.
func decorate(rng *rand.Rand, q *backend.Queries, end int64) {
	if rng.IntN(3) > 0 {
		for range q.Len() {
			q.Pos = append(q.Pos, rng.Int64N(end+200))
		}
		if rng.IntN(2) == 0 {
			q.Window = 1 + rng.Int64N(150)
		}
	}
	if rng.IntN(2) == 0 {
		q.Softcap = 1 + 50*rng.Float32()
	}
}

func drawRope(rng *rand.Rand, dim int) *quant.Rope {
	rope := quant.Rope{Layout: quant.RopeLayout(rng.IntN(3)), Theta: 10000}
	rope.RotaryDim = 2 * (1 + rng.IntN(dim/2))
	if rng.IntN(2) == 0 {
		rope.RotaryDim = dim / 2 * 2
	}
	if rng.IntN(2) == 0 {
		for range rope.RotaryDim / 2 {
			rope.InvFreq = append(rope.InvFreq, rng.Float32())
		}
	}
	return &rope
}

// drawTerms sets means, metric, limit, and regular positions and counts at random.
func drawTerms(rng *rand.Rand, s *spec, dk, dv int) {
	vector := func(dim int) []float32 {
		x := make([]float32, dim)
		for i := range x {
			x[i] = float32(2 * rng.NormFloat64())
		}
		return x
	}
	if rng.IntN(3) == 0 {
		s.meanK = vector(dk)
	}
	if rng.IntN(3) == 0 {
		s.meanV = vector(dv)
	}
	switch rng.IntN(6) {
	case 0, 1:
		s.metric = diagonal(rng, dk)
	case 2:
		if dk <= 96 {
			s.metric = matrix(rng, dk)
		}
	}
	if rng.IntN(3) == 0 {
		s.stride = int32(rng.IntN(5))
	}
	if rng.IntN(3) == 0 {
		s.tokens = int32(rng.IntN(3000))
	}
	if rng.IntN(4) == 0 {
		s.limit = int32(1 + rng.IntN(150))
	}
}

// diagonal draws a metric between 1/4 and 4.
func diagonal(rng *rand.Rand, dim int) *frame.Metric {
	a := make([]float32, dim)
	for i := range a {
		a[i] = float32(math.Exp2(4*rng.Float64() - 2))
	}
	m, err := frame.NewDiagonal(a)
	if err != nil {
		panic(err)
	}
	return m
}

// matrix draws a metric near the identity.
func matrix(rng *rand.Rand, dim int) *frame.Metric {
	a := make([]float32, dim*dim)
	for i := range a {
		a[i] = float32(0.3 * rng.NormFloat64() / math.Sqrt(float64(dim)))
		if i%(dim+1) == 0 {
			a[i]++
		}
	}
	m, err := frame.NewMatrix(a, dim)
	if err != nil {
		panic(err)
	}
	return m
}

func mixtures() uint64 {
	if testing.Short() {
		return 25
	}
	return 150
}
