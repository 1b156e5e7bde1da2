// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// testAttendTerms attends to the same rows stored plainly, and with means and metrics. The results
// agree, whatever the mean and the metric are, with and without an offset, a window and a soft cap.
func testAttendTerms(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 45
	c := mustCoding(t, "f32")
	if !b.Supports(backend.OpAttend, c, dim) {
		t.Skip("f32 is not supported")
	}
	rope := &quant.Rope{Layout: quant.RopeHalf, RotaryDim: dim, Theta: 1e4}
	rng := rand.New(rand.NewPCG(3, 4))
	x := quanttest.Rows(quanttest.Gaussian, rows, dim, 1)
	v := quanttest.Rows(quanttest.Gaussian, rows, dim, 2)
	for d := range dim { // a constant part of 16 RMS in some channels
		for r := range rows {
			x.Row(r)[d] += float32(16 * (d % 3))
			v.Row(r)[d] += float32(d % 2)
		}
	}
	meanOf := func(x quant.Rows) []float32 {
		stored, mean := make([]byte, frame.MeanBytes(dim)), make([]float32, dim)
		require.NoError(t, frame.PutMean(stored, x))
		require.NoError(t, frame.Mean(mean, stored))
		return mean
	}
	base := spec{rows: rows, k: c, v: c, kData: &x, vData: &v, rope: rope, offset: 9, base: 3}
	variants := []func(s *spec){
		func(*spec) {},
		func(s *spec) { s.meanK = meanOf(x) },
		func(s *spec) { s.meanV = meanOf(v) },
		func(s *spec) { s.metric = diagonal(rng, dim) },
		func(s *spec) { s.metric = matrix(rng, dim) },
		func(s *spec) { s.meanK, s.meanV, s.metric = meanOf(x), meanOf(v), matrix(rng, dim) },
	}
	a := newArena(t, b)
	defer a.free()
	var blocks []known
	var lists [][]int32
	for i, f := range variants {
		for _, offset := range []int32{0, 9} {
			s := base
			s.offset = offset
			f(&s)
			blocks = append(blocks, place(a, s, dim, dim))
			lists = append(lists, []int32{int32(2*i) + b2i(offset != 0)})
		}
	}
	a.upload()
	for _, softcap := range []float32{0, 5} {
		q := queriesFor(len(lists), 3, dim, dim, 9, lists)
		q.Softcap, q.Window = softcap, 30
		for i := range lists {
			copy(q.Q[i*3*dim:], q.Q[:3*dim])
			q.Pos = append(q.Pos, 40)
		}
		out, lse := attend(t, b, q, blocks)
		checkAttend(t, q, blocks, out, lse, fmt.Sprintf("softcap=%g", softcap))
		for i := 2; i < len(lists); i++ {
			for j := range 3 * dim {
				require.InDelta(t, out[i%2*3*dim+j], out[i*3*dim+j], 2e-3, "variant %d", i/2)
			}
			for h := range 3 {
				require.InDelta(t, lse[i%2*3+h], lse[i*3+h], 2e-3, "variant %d", i/2)
			}
		}
	}
	a.unchanged()
}

func b2i(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

// testAttendLimit compares blocks with a limit, and those with regular positions and counts, with
// blocks of only the rows that are left, whose positions and counts are stored.
func testAttendLimit(t *testing.T, b backend.Backend) {
	const dim, rows, limit = 64, 70, 41
	c := mustCoding(t, "f16")
	k := quanttest.Rows(quanttest.Gaussian, rows, dim, 1)
	v := quanttest.Rows(quanttest.Gaussian, rows, dim, 2)
	pos := make([]uint16, rows) // sorted by something else than position
	for r, p := range rand.New(rand.NewPCG(1, 2)).Perm(rows) {
		pos[r] = uint16(p)
	}
	left := func(keep func(r int) bool, place func(r int) int) spec {
		ks, vs := quant.Rows{Dim: dim}, quant.Rows{Dim: dim}
		s := spec{k: c, v: c, base: 100}
		for r := range rows {
			if keep(r) {
				ks.Data, vs.Data = append(ks.Data, k.Row(r)...), append(vs.Data, v.Row(r)...)
				s.pos = append(s.pos, uint16(place(r)))
				s.count = append(s.count, 4)
				s.rows++
			}
		}
		s.kData, s.vData = &ks, &vs
		return s
	}
	all := spec{rows: rows, k: c, v: c, kData: &k, vData: &v, base: 100, tokens: 4}
	sorted, regular := all, all
	sorted.pos, sorted.limit = pos, limit
	regular.stride, regular.limit = 3, limit
	a := newArena(t, b)
	defer a.free()
	var blocks []known
	for _, s := range []spec{sorted,
		left(func(r int) bool { return pos[r] < limit }, func(r int) int { return int(pos[r]) }),
		regular,
		left(func(r int) bool { return 3*r < limit }, func(r int) int { return 3 * r })} {
		blocks = append(blocks, place(a, s, dim, dim))
	}
	a.upload()
	for _, window := range []int64{0, 25} {
		q := queriesFor(4, 2, dim, dim, 9, [][]int32{{0}, {1}, {2}, {3}})
		for i := range 4 {
			copy(q.Q[i*2*dim:], q.Q[:2*dim])
		}
		if window > 0 {
			q.Pos, q.Window = []int64{130, 130, 130, 130}, window
		}
		out, lse := attend(t, b, q, blocks)
		checkAttend(t, q, blocks, out, lse, "limit")
		for i := 0; i < 4; i += 2 {
			for j := range 2 * dim {
				require.InDelta(t, out[(i+1)*2*dim+j], out[i*2*dim+j], 1e-5)
			}
		}
	}
}

// testInvariance holds the promise that the bits of a query depend on its own list only: not on the
// queries beside it, their order, the other blocks of the table, or where in it blocks are.
func testInvariance(t *testing.T, b backend.Backend) {
	for n := range mixtures() / 3 {
		t.Run(fmt.Sprintf("case=%d", n), func(t *testing.T) {
			a := newArena(t, b)
			defer a.free()
			m := drawMixture(a, b, 7000+n)
			a.upload()
			out, lse, mass := attendMass(t, b, m.q, m.blocks)
			for i := range m.q.Len() {
				one, blocks := alone(m, i)
				o, l, w := attendMass(t, b, one, blocks)
				heads := m.q.Group
				sameBits(t, out[i*heads*m.q.HeadDimV:(i+1)*heads*m.q.HeadDimV], o, "out of query %d", i)
				sameBits(t, lse[i*heads:(i+1)*heads], l, "lse of query %d", i)
				sameBits(t, mass[m.q.BlockPtr[i]:m.q.BlockPtr[i+1]], w, "mass of query %d", i)
			}
		})
	}
}

// alone returns query i with a table of its own, whose blocks come in another order.
func alone(m mixture, i int) (*backend.Queries, []known) {
	q := *m.q
	size := q.Group * q.HeadDim
	q.Q = m.q.Q[i*size : (i+1)*size]
	if q.Pos != nil {
		q.Pos = m.q.Pos[i : i+1]
	}
	var blocks []known
	at := map[int32]int32{}
	list := m.q.BlockIdx[m.q.BlockPtr[i]:m.q.BlockPtr[i+1]]
	for _, idx := range slices.Backward(list) {
		if _, ok := at[idx]; !ok {
			at[idx] = int32(len(blocks))
			blocks = append(blocks, m.blocks[idx])
		}
	}
	q.BlockIdx = nil
	for _, idx := range list {
		q.BlockIdx = append(q.BlockIdx, at[idx])
	}
	q.BlockPtr = []int32{0, int32(len(q.BlockIdx))}
	return &q, blocks
}

func sameBits(t *testing.T, want, got []float32, format string, args ...any) {
	t.Helper()
	require.Len(t, got, len(want), format, args)
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(got[i]) {
			t.Fatalf(format+": value %d: %g alone, %g in the batch", append(args, i, got[i], want[i])...)
		}
	}
}
