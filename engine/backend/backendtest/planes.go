// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// testAttendPlanes attends to blocks whose K and V both are bit planes: every pair of widths, both forms
// of scales, blocks that end within a word, many blocks of mixed pairs with terms of all kinds, units of 1
// to 16 heads, and rows whose scores rise along a list that is divided.
func testAttendPlanes(t *testing.T, b backend.Backend) {
	for _, dim := range []int{64, 96, 128, 256} {
		t.Run(fmt.Sprintf("head_dim=%d", dim), func(t *testing.T) {
			if !b.Supports(backend.OpAttend, mustCoding(t, "lm4"), dim) {
				t.Skip("lm4 is not supported")
			}
			t.Run("pairs", func(t *testing.T) { planePairs(t, b, dim) })
			t.Run("mixed", func(t *testing.T) { planeMixtures(t, b, dim) })
			t.Run("long", func(t *testing.T) { planeLists(t, b, dim) })
		})
	}
}

// planeCodings are the codings of bit planes, in an order that n turns.
func planeCodings(n int) []quant.Coding {
	var all []quant.Coding
	for f := quant.LM1; f <= quant.LM4; f++ {
		for _, s := range []quant.ScaleForm{quant.ScaleF16, quant.ScaleLog8} {
			all = append(all, quant.Coding{Format: f, Scale: s})
		}
	}
	return slices.Concat(all[n%len(all):], all[:n%len(all)])
}

func planePairs(t *testing.T, b backend.Backend, dim int) {
	a := newArena(t, b)
	defer a.free()
	var blocks []known
	var lists [][]int32
	for i, k := range planeCodings(0) {
		for j, v := range planeCodings(i) {
			rows := rowCounts()[(i+j)%len(rowCounts())]
			blocks = append(blocks, place(a, spec{rows: rows, k: k, v: v, seedK: seedA, seedV: seedB,
				draw: uint64(i*10 + j)}, dim, dim))
			lists = append(lists, []int32{int32(len(lists))})
		}
	}
	lists = append(lists, span32(len(blocks)))
	a.upload()
	for _, g := range groups() {
		q := queriesFor(len(lists), g, dim, dim, uint64(g), lists)
		out, lse, mass := attendMass(t, b, q, blocks)
		checkAttend(t, q, blocks, out, lse, fmt.Sprintf("group=%d", g))
		checkMass(t, q, blocks, mass, fmt.Sprintf("group=%d", g))
	}
	a.unchanged()
}

func planeMixtures(t *testing.T, b backend.Backend, dim int) {
	cases := uint64(12)
	if testing.Short() {
		cases = 3
	}
	for n := range cases {
		a := newArena(t, b)
		rng := rand.New(rand.NewPCG(n, uint64(dim)))
		rope := drawRope(rng, dim)
		var blocks []known
		base := int64(0)
		for i := range 6 {
			cs := planeCodings(rng.IntN(8))
			s := spec{rows: rng.IntN(100), k: cs[0], v: cs[rng.IntN(8)], seedK: n, seedV: n + 1,
				draw: n*100 + uint64(i), base: base, rope: rope}
			s.vFam = []quanttest.Family{quanttest.Gaussian, quanttest.HeavyTails, quanttest.Zeros,
				quanttest.Tiny, quanttest.Constant}[rng.IntN(5)]
			if rng.IntN(3) == 0 {
				for range s.rows {
					s.bias = append(s.bias, float32(rng.NormFloat64()))
				}
			}
			if rng.IntN(2) == 0 {
				s.noise = float32(s.k.NoisePerScale2())
			}
			if rng.IntN(3) == 0 {
				s.offset = int32(rng.IntN(2001) - 1000)
			}
			drawTerms(rng, &s, dim, dim)
			base += int64(s.rows) * int64(max(1, s.stride))
			blocks = append(blocks, place(a, s, dim, dim))
		}
		a.upload()
		lists := [][]int32{span32(len(blocks)), span32(len(blocks)), randomList(rng, len(blocks), nil)}
		q := queriesFor(len(lists), 1+rng.IntN(16), dim, dim, n, lists)
		decorate(rng, q, base)
		out, lse, mass := attendMass(t, b, q, blocks)
		checkAttend(t, q, blocks, out, lse, fmt.Sprintf("case=%d", n))
		checkMass(t, q, blocks, mass, fmt.Sprintf("case=%d", n))
		a.free()
	}
}

// planeLists has one list of thousands of rows, so that a part of it takes many tiles.
func planeLists(t *testing.T, b backend.Backend, dim int) {
	rows := []int{40, 1000, 2100, 33}
	if testing.Short() {
		rows = []int{40, 900, 33}
	}
	a := newArena(t, b)
	defer a.free()
	var blocks []known
	for i, n := range rows {
		k := quanttest.Rows(quanttest.Gaussian, n, dim, uint64(i))
		for j := range k.Data {
			k.Data[j] *= 0.5 + float32(j/dim)/float32(n) // later rows have the larger scores
		}
		v := quanttest.Rows(quanttest.Gaussian, n, dim, uint64(i+50))
		for j := range v.Data {
			v.Data[j]++ // so that small weights count together
		}
		blocks = append(blocks, place(a, spec{rows: n, k: planeCodings(2 * i)[2], v: planeCodings(i)[3],
			kData: &k, vData: &v, seedK: seedA, seedV: seedB}, dim, dim))
	}
	a.upload()
	list := span32(len(rows))
	down := slices.Clone(list)
	slices.Reverse(down)
	lists := [][]int32{list, down}
	if dim == 64 || dim == 128 { // a part of it takes several rounds of tiles, in kernels that have rounds
		lists = append(lists, slices.Repeat(list, 16))
	}
	q := queriesFor(len(lists), 1, dim, dim, 8, lists)
	out, lse := attend(t, b, q, blocks)
	checkAttend(t, q, blocks, out, lse, "long")
}
