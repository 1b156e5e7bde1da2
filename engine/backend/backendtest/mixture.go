// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
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
	var blocks []known
	base := int64(rng.IntN(1000))
	for i := range 3 + rng.IntN(6) {
		s := spec{rows: rng.IntN(70), k: ks[rng.IntN(len(ks))], v: vs[rng.IntN(len(vs))], seedK: n,
			seedV: n + 1, draw: n*100 + uint64(i), base: base,
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
		base += int64(s.rows)
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

// decorate sets positions, window, softcap and RoPE at random.
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
	rope := quant.Rope{Layout: quant.RopeLayout(rng.IntN(3)), Theta: 10000}
	rope.RotaryDim = 2 * (1 + rng.IntN(q.HeadDim/2))
	if rng.IntN(2) == 0 {
		rope.RotaryDim = q.HeadDim / 2 * 2
	}
	if rng.IntN(2) == 0 {
		for range rope.RotaryDim / 2 {
			rope.InvFreq = append(rope.InvFreq, rng.Float32())
		}
	}
	q.Rope = &rope
}

func mixtures() uint64 {
	if testing.Short() {
		return 25
	}
	return 150
}
