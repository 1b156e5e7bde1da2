// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// attend calls the backend with outputs full of NaNs, so that a test finds outputs that stay
// unwritten.
func attend(t testing.TB, b backend.Backend, q *backend.Queries,
	blocks []known) (out, lse []float32) {
	t.Helper()
	out, lse, _ = attendMass(t, b, q, blocks)
	return out, lse
}

// attendMass is attend with masses.
func attendMass(t testing.TB, b backend.Backend, q *backend.Queries,
	blocks []known) (out, lse, mass []float32) {
	t.Helper()
	out, lse = nans(q.Len()*q.Group*q.HeadDimV), nans(q.Len()*q.Group)
	mass = nans(len(q.BlockIdx))
	require.NoError(t, backend.AttendBlocks(context.Background(), b, q, ropeOf(blocks), handles(blocks),
		backend.Attention{Out: out, LSE: lse, Mass: mass}))
	return out, lse, mass
}

func nans(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x
}

func span32(n int) []int32 {
	x := make([]int32, n)
	for i := range x {
		x[i] = int32(i)
	}
	return x
}

// testAttendMatrix runs codings x dims x GQA ratios x row counts. V has a coding other than K's
// and, in half of the cases, another dim.
func testAttendMatrix(t *testing.T, b backend.Backend) {
	for di, dim := range dims() {
		for ci, c := range codingsFor(b, backend.OpAttend, dim) {
			dimV := dim
			if ci%2 == 1 {
				dimV = dims()[(di+1)%len(dims())]
			}
			vs := codingsFor(b, backend.OpAttend, dimV)
			v := vs[(ci*3+di+1)%len(vs)]
			name := fmt.Sprintf("k=%s/v=%s/head_dim=%d/head_dim_v=%d", c, v, dim, dimV)
			t.Run(name, func(t *testing.T) {
				a := newArena(t, b)
				defer a.free()
				var blocks []known
				var lists [][]int32
				for i, rows := range rowCounts() {
					blocks = append(blocks, place(a, spec{rows: rows, k: c, v: v, seedK: seedA,
						seedV: seedB, draw: uint64(ci*100 + i)}, dim, dimV))
					lists = append(lists, []int32{int32(i)})
				}
				lists = append(lists, span32(len(blocks)))
				a.upload()
				for _, g := range groups() {
					q := queriesFor(len(lists), g, dim, dimV, uint64(g), lists)
					out, lse := attend(t, b, q, blocks)
					checkAttend(t, q, blocks, out, lse, fmt.Sprintf("group=%d", g))
				}
				a.unchanged()
			})
		}
	}
}

func testAttendMixed(t *testing.T, b backend.Backend) {
	for n := range mixtures() {
		t.Run(fmt.Sprintf("case=%d", n), func(t *testing.T) {
			a := newArena(t, b)
			defer a.free()
			m := drawMixture(a, b, n)
			a.upload()
			out, lse, mass := attendMass(t, b, m.q, m.blocks)
			a.unchanged()
			checkAttend(t, m.q, m.blocks, out, lse, "mixed")
			checkMass(t, m.q, m.blocks, mass, "mixed")
			again := nans(len(out))
			require.NoError(t, backend.AttendBlocks(context.Background(), b, m.q, ropeOf(m.blocks),
				handles(m.blocks), backend.Attention{Out: again}))
			require.Equal(t, out, again, "without lse and mass")
		})
	}
}

// testAttendCount replaces equal rows by one row with a count.
func testAttendCount(t *testing.T, b backend.Backend) {
	const dim, rows, copies = 64, 9, 5
	c := mustCoding(t, "f32")
	if !b.Supports(backend.OpAttend, c, dim) {
		t.Skip("f32 is not supported")
	}
	k := quanttest.Rows(quanttest.Gaussian, rows, dim, 1)
	v := quanttest.Rows(quanttest.Gaussian, rows, dim, 2)
	kk, vv := quant.Rows{Dim: dim}, quant.Rows{Dim: dim}
	for range copies {
		kk.Data, vv.Data = append(kk.Data, k.Row(4)...), append(vv.Data, v.Row(4)...)
	}
	kk.Data, vv.Data = append(kk.Data, k.Data...), append(vv.Data, v.Data...)
	a := newArena(t, b)
	defer a.free()
	blocks := []known{
		place(a, spec{rows: rows, k: c, v: c, kData: &k, vData: &v,
			count: []uint16{1, 1, 1, 1, 1 + copies, 1, 1, 1, 1}}, dim, dim),
		place(a, spec{rows: rows + copies, k: c, v: c, kData: &kk, vData: &vv}, dim, dim),
	}
	a.upload()
	q := queriesFor(2, 3, dim, dim, 9, [][]int32{{0}, {1}})
	copy(q.Q[3*dim:], q.Q[:3*dim])
	out, lse := attend(t, b, q, blocks)
	checkAttend(t, q, blocks, out, lse, "count")
	for i := range 3 * dim {
		require.InDelta(t, out[3*dim+i], out[i], 1e-5)
	}
	for h := range 3 {
		require.InDelta(t, lse[3+h], lse[h], 1e-5)
	}
}

// testAttendUnseen fills rows that are masked, or that have a bias of -Inf, with NaNs.
func testAttendUnseen(t *testing.T, b backend.Backend) {
	const dim, rows = 64, 40
	c := mustCoding(t, "f32")
	if !b.Supports(backend.OpAttend, c, dim) {
		t.Skip("f32 is not supported")
	}
	k := quanttest.Rows(quanttest.Gaussian, rows, dim, 1)
	v := quanttest.Rows(quanttest.Gaussian, rows, dim, 2)
	bias := make([]float32, rows)
	poison := func(r int, x float64) {
		for d := range dim {
			k.Row(r)[d], v.Row(r)[d] = float32(x), float32(x)
		}
	}
	poison(33, math.NaN()) // after the query
	poison(39, math.Inf(1))
	poison(2, math.NaN()) // before the window
	for d := range dim {  // bias of -Inf: V may hold anything, K must give a score of -Inf
		v.Row(20)[d] = float32(math.NaN())
	}
	bias[20] = float32(math.Inf(-1))
	a := newArena(t, b)
	defer a.free()
	blocks := []known{place(a, spec{rows: rows, k: c, v: c, kData: &k, vData: &v, bias: bias,
		base: 100}, dim, dim)}
	a.upload()
	q := queriesFor(2, 2, dim, dim, 9, [][]int32{{0}, {0}})
	q.Pos, q.Window = []int64{132, 131}, 29
	out, lse := attend(t, b, q, blocks)
	checkAttend(t, q, blocks, out, lse, "unseen")
}

// testAttendNothing attends with no queries, empty lists, empty blocks and rows that no query sees.
func testAttendNothing(t *testing.T, b backend.Backend) {
	const dim, dimV = 64, 80
	c := mustCoding(t, "lm4")
	if !b.Supports(backend.OpAttend, c, dim) || !b.Supports(backend.OpAttend, c, dimV) {
		t.Skip("lm4 is not supported")
	}
	none := &backend.Queries{Group: 2, HeadDim: dim, HeadDimV: dimV, Scale: 1}
	require.NoError(t, backend.AttendBlocks(context.Background(), b, none, nil, nil, backend.Attention{}))
	none.BlockPtr = []int32{0}
	require.NoError(t, backend.AttendBlocks(context.Background(), b, none, nil, nil,
		backend.Attention{LSE: []float32{}, Mass: []float32{}}))

	a := newArena(t, b)
	defer a.free()
	blocks := []known{
		place(a, spec{k: c, v: c}, dim, dimV),
		place(a, spec{rows: 33, k: c, v: c, base: 500}, dim, dimV),
	}
	a.upload()
	q := queriesFor(5, 2, dim, dimV, 3, [][]int32{{}, {0}, {1}, {0, 1, 0}, {1}})
	q.Pos = []int64{0, 0, 499, 0, 510}
	out, lse := attend(t, b, q, blocks)
	for i := range 4 * 2 * dimV {
		require.Zero(t, out[i])
	}
	for h := range 4 * 2 {
		require.Equal(t, float32(math.Inf(-1)), lse[h])
	}
	checkAttend(t, q, blocks, out, lse, "seen by the last query")
	require.False(t, math.IsInf(float64(lse[8]), 0))
}

// testAttendSplit attends to two halves of a list and merges the results.
func testAttendSplit(t *testing.T, b backend.Backend) {
	for n := range mixtures() / 5 {
		t.Run(fmt.Sprintf("case=%d", n), func(t *testing.T) {
			a := newArena(t, b)
			defer a.free()
			m := drawMixture(a, b, 1000+n)
			a.upload()
			rng := rand.New(rand.NewPCG(n, 5))
			half := [2]backend.Queries{*m.q, *m.q}
			for s := range half {
				half[s].BlockPtr, half[s].BlockIdx = []int32{0}, nil
			}
			for i := range m.q.Len() {
				for _, idx := range m.q.BlockIdx[m.q.BlockPtr[i]:m.q.BlockPtr[i+1]] {
					s := rng.IntN(2)
					half[s].BlockIdx = append(half[s].BlockIdx, idx)
				}
				for s := range half {
					half[s].BlockPtr = append(half[s].BlockPtr, int32(len(half[s].BlockIdx)))
				}
			}
			out, lse := attend(t, b, &half[0], m.blocks)
			out2, lse2 := attend(t, b, &half[1], m.blocks)
			require.NoError(t, backend.MergeAttention(out, lse, out2, lse2, m.q.HeadDimV))
			// The tolerance of the whole covers those of the parts and the rounding of lse.
			checkAttend(t, m.q, m.blocks, out, lse, "merged")
		})
	}
}

// testAttendOrder permutes the list, and the rows in each block.
func testAttendOrder(t *testing.T, b backend.Backend) {
	const dim, rows, n = 64, 33, 6
	codings := []string{"f16", "lm3+ip", "u8", "lm1", "tqmse2", "ggml-q8_0"}
	a := newArena(t, b)
	defer a.free()
	var blocks, shuffled []known
	for i := range n {
		c := mustCoding(t, codings[i])
		if !b.Supports(backend.OpAttend, c, dim) {
			t.Skipf("%s is not supported", c)
		}
		k := quanttest.Rows(quanttest.Gaussian, rows, dim, uint64(i))
		v := quanttest.Rows(quanttest.HeavyTails, rows, dim, uint64(i+50))
		s := spec{rows: rows, k: c, v: c, kData: &k, vData: &v, base: int64(i * rows)}
		ks, vs := quant.Rows{Dim: dim}, quant.Rows{Dim: dim}
		s2 := s
		for _, r := range rand.New(rand.NewPCG(uint64(i), 1)).Perm(rows) {
			ks.Data, vs.Data = append(ks.Data, k.Row(r)...), append(vs.Data, v.Row(r)...)
			s2.pos = append(s2.pos, uint16(r))
		}
		s2.kData, s2.vData = &ks, &vs
		blocks = append(blocks, place(a, s, dim, dim))
		shuffled = append(shuffled, place(a, s2, dim, dim))
	}
	a.upload()
	q := queriesFor(3, 4, dim, dim, 4, [][]int32{{0, 1, 2, 3, 4, 5},
		{5, 3, 1, 0, 2, 4}, {4, 0, 5, 1, 3, 2}})
	q.Pos, q.Window = []int64{150, 150, 150}, 120
	copy(q.Q[4*dim:], q.Q[:4*dim])
	copy(q.Q[8*dim:], q.Q[:4*dim])
	for name, bs := range map[string][]known{"rows in order": blocks, "rows shuffled": shuffled} {
		out, lse := attend(t, b, q, bs)
		checkAttend(t, q, blocks, out, lse, name)
	}
}

// testAttendLong lists one block so often that a running sum in float32 would lose accuracy.
func testAttendLong(t *testing.T, b backend.Backend) {
	const dim, rows = 8, 1024
	times := 1024
	if testing.Short() {
		times = 64
	}
	c := mustCoding(t, "lm4+s8")
	if !b.Supports(backend.OpAttend, c, dim) {
		t.Skipf("%s is not supported", c)
	}
	v := quanttest.Rows(quanttest.Gaussian, rows, dim, 3)
	for i := range v.Data {
		v.Data[i] += 3 // so that sums grow
	}
	a := newArena(t, b)
	defer a.free()
	blocks := []known{place(a, spec{rows: rows, k: c, v: c, vData: &v}, dim, dim)}
	a.upload()
	once := queriesFor(1, 2, dim, dim, 8, [][]int32{{0}})
	often := *once
	often.BlockPtr, often.BlockIdx = []int32{0, int32(times)}, make([]int32, times)
	out, lse := attend(t, b, &often, blocks)
	for h := range lse {
		lse[h] = float32(float64(lse[h]) - math.Log(float64(times)))
	}
	checkAttend(t, once, blocks, out, lse, fmt.Sprintf("%d rows", rows*times))
}

// testAttendPieces attends to thousands of rows whose scores rise, fall or jump along the list, in
// both bases. A backend that splits the list must weigh the parts when it combines them.
func testAttendPieces(t *testing.T, b backend.Backend) {
	const dim, rows, n = 16, 640, 9
	a := newArena(t, b)
	defer a.free()
	var blocks []known
	for i := range n {
		c := mustCoding(t, []string{"f16", "lm4+ip", "u8+s8"}[i%3])
		if !b.Supports(backend.OpAttend, c, dim) {
			t.Skipf("%s is not supported", c)
		}
		k := quanttest.Rows(quanttest.Gaussian, rows, dim, uint64(i))
		for j := range k.Data {
			k.Data[j] *= float32(i + 1) // later blocks have the larger scores
		}
		blocks = append(blocks, place(a, spec{rows: rows, k: c, v: c, kData: &k}, dim, dim))
	}
	a.upload()
	up := span32(n)
	down := make([]int32, n)
	for i := range down {
		down[i] = int32(n - 1 - i)
	}
	jump := []int32{4, 8, 0, 6, 2, 7, 1, 5, 3}
	q := queriesFor(4, 2, dim, dim, 8, [][]int32{up, down, jump, jump})
	out, lse := attend(t, b, q, blocks)
	checkAttend(t, q, blocks, out, lse, "pieces")
}
