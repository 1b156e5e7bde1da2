// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"math/cmplx"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// spec describes a block.
type spec struct {
	rows         int
	k, v         quant.Coding
	seedK, seedV uint64
	kFam, vFam   quanttest.Family // "" is gaussian
	draw         uint64           // seed of the rows
	base         int64
	pos          []uint16
	count        []uint16
	bias         []float32
	noise        float32
	offset       int32
	kData, vData *quant.Rows // used instead of drawn rows
}

// known is a block with everything that the reference needs.
type known struct {
	spec
	handle backend.Block
	kRows  quant.Rows // as quant.Decode gives them
	vRows  quant.Rows
	scales []float32 // row scales of K
}

// place packs a block with package quant and puts it into the arena.
func place(a *arena, s spec, dimK, dimV int) known {
	side := func(c quant.Coding, data *quant.Rows, fam quanttest.Family, dim int, seed, draw uint64) (
		backend.Side, quant.Rows, []byte) {
		if fam == "" {
			fam = quanttest.Gaussian
		}
		x := quanttest.Rows(fam, s.rows, dim, draw)
		if data != nil {
			x = *data
		}
		p := pack(a.t, c, x, seed)
		return backend.Side{Coding: c, Data: a.put(p), Seed: seed},
			unpack(a.t, c, p, s.rows, dim, seed), p
	}
	k := known{spec: s, scales: make([]float32, s.rows)}
	h := backend.Block{Rows: int32(s.rows), Base: s.base, Noise: s.noise, Offset: s.offset}
	var packed []byte
	h.K, k.kRows, packed = side(s.k, s.kData, s.kFam, dimK, s.seedK, 2*s.draw)
	h.V, k.vRows, _ = side(s.v, s.vData, s.vFam, dimV, s.seedV, 2*s.draw+1)
	require.NoError(a.t, quant.RowScales(k.scales, s.k, packed, s.rows, dimK))
	if s.pos != nil {
		h.Pos = a.put(bytesOfU16(s.pos))
	}
	if s.count != nil {
		h.Count = a.put(bytesOfU16(s.count))
	}
	if s.bias != nil {
		h.Bias = a.put(bytesOfF32(s.bias))
	}
	k.handle = h
	return k
}

func handles(ks []known) []backend.Block {
	hs := make([]backend.Block, len(ks))
	for i := range ks {
		hs[i] = ks[i].handle
	}
	return hs
}

// turnFloat64 rotates q by offset further positions, with complex products.
func turnFloat64(q []float64, r *quant.Rope, offset int32) {
	for i, f := range r.Frequencies() {
		a, b := i, i+r.RotaryDim/2
		if r.Layout == quant.RopeInterleaved {
			a, b = 2*i, 2*i+1
		}
		z := complex(q[a], q[b]) * cmplx.Exp(complex(0, f*float64(offset)))
		q[a], q[b] = real(z), imag(z)
	}
}

// scored is one row as a query head sees it.
type scored struct {
	block, row int
	score      float64 // with all biases
	slack      float64 // how far a backend's score may be off
	v          []float32
}

// oracleScores returns the rows that head h of query i sees, in the order of its list.
func oracleScores(q *backend.Queries, blocks []known, i, h int) []scored {
	at := (i*q.Group + h) * q.HeadDim
	vec := make([]float64, q.HeadDim)
	var all []scored
	for _, bi := range q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] {
		b := &blocks[bi]
		for d := range vec {
			vec[d] = float64(q.Q[at+d])
		}
		if b.offset != 0 {
			turnFloat64(vec, q.Rope, b.offset)
		}
		norm := math.Sqrt(dot64(vec, vec))
		for r := range b.rows {
			if q.Pos != nil {
				pos := b.base + int64(r)
				if b.pos != nil {
					pos = b.base + int64(b.pos[r])
				}
				if d := q.Pos[i] - pos; d < 0 || (q.Window > 0 && d >= q.Window) {
					continue
				}
			}
			var s, kk float64
			for d, y := range b.kRows.Row(r) {
				s += vec[d] * float64(y)
				kk += float64(y) * float64(y)
			}
			s *= float64(q.Scale)
			slack := productSlack(q, b, norm*math.Sqrt(kk), s)
			if q.Softcap > 0 {
				s = float64(q.Softcap) * math.Tanh(s/float64(q.Softcap))
			}
			extra := 0.0
			if b.count != nil {
				extra += math.Log(float64(b.count[r]))
			}
			if b.bias != nil {
				extra += float64(b.bias[r])
			}
			noise := 0.5 * float64(q.Scale) * float64(q.Scale) * norm * norm * float64(b.noise) *
				float64(b.scales[r]) * float64(b.scales[r])
			row := scored{block: int(bi), row: r, score: s + extra - noise, v: b.vRows.Row(r)}
			row.slack = slack + sumSlack(s, extra, noise)
			all = append(all, row)
		}
	}
	return all
}

func dot64(a, b []float64) float64 {
	var s float64
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

// answer is the expected result of one query head.
type answer struct {
	out, tol    []float64
	lse, lseTol float64
}

// oracleAttend is the attention of one head in float64, with the tolerance of the result.
func oracleAttend(t testing.TB, q *backend.Queries, blocks []known, i, h int) answer {
	rows := oracleScores(q, blocks, i, h)
	ans := answer{out: make([]float64, q.HeadDimV), tol: make([]float64, q.HeadDimV)}
	top := math.Inf(-1)
	for _, r := range rows {
		top = max(top, r.score)
	}
	if math.IsInf(top, -1) {
		ans.lse = top
		return ans
	}
	var sum float64
	p := make([]float64, len(rows))
	for j, r := range rows {
		p[j] = math.Exp(r.score - top)
		sum += p[j]
	}
	for j, r := range rows {
		p[j] /= sum
		for d, v := range r.v {
			if p[j] > 0 {
				ans.out[d] += p[j] * float64(v)
			}
		}
	}
	ans.lse = top + math.Log(sum)
	tol := attendTolerance(t, q, rows, p, ans.lse)
	for d := range ans.tol {
		ans.tol[d] = tol.out
	}
	ans.lseTol = tol.lse
	return ans
}

// checkAttend compares out and lse with the reference.
func checkAttend(t testing.TB, q *backend.Queries, blocks []known, out, lse []float32,
	name string) {
	t.Helper()
	for i := range q.Len() {
		for h := range q.Group {
			head := i*q.Group + h
			want := oracleAttend(t, q, blocks, i, h)
			for d, w := range want.out {
				got := float64(out[head*q.HeadDimV+d])
				if !(math.Abs(got-w) <= want.tol[d]) {
					t.Fatalf("%s: query %d head %d value %d: got %g, want %g +- %g", name, i, h, d, got,
						w, want.tol[d])
				}
			}
			if lse == nil {
				continue
			}
			got := float64(lse[head])
			if got != want.lse && !(math.Abs(got-want.lse) <= want.lseTol) {
				t.Fatalf("%s: query %d head %d: lse %g, want %g +- %g", name, i, h, got, want.lse,
					want.lseTol)
			}
		}
	}
}

// checkRelevance compares sums, which started at start, with the reference.
func checkRelevance(t testing.TB, q *backend.Queries, lse []float32, blocks []known,
	rel *backend.RelevanceOut, start float32, name string) {
	t.Helper()
	want := make([]float64, len(rel.Sum))
	tol := make([]float64, len(rel.Sum))
	for i := range want {
		want[i] = float64(start)
	}
	terms := 1
	for i := range q.Len() {
		for h := range q.Group {
			l := float64(lse[i*q.Group+h])
			if math.IsInf(l, -1) {
				continue
			}
			terms++
			for _, r := range oracleScores(q, blocks, i, h) {
				at := int(rel.RowPtr[r.block]) + r.row
				p := math.Pow(math.Exp(r.score-l), float64(rel.Power))
				want[at] += p
				tol[at] += p * probabilitySlack(r.slack, r.score, l, rel.Power)
			}
		}
	}
	for i, w := range want {
		limit := tol[i] + float64(terms)*eps*math.Abs(w)
		if got := float64(rel.Sum[i]); !(math.Abs(got-w) <= limit) {
			t.Fatalf("%s: row %d: got %g, want %g +- %g", name, i, got, w, limit)
		}
	}
}
