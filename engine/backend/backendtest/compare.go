// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"testing"

	"github.com/kvist-project/kvist/engine/backend"
)

// checkMass compares masses with the reference.
func checkMass(t testing.TB, q *backend.Queries, blocks []known, mass []float32, name string) {
	t.Helper()
	for i := range q.Len() {
		from, to := q.BlockPtr[i], q.BlockPtr[i+1]
		want, tol := make([]float64, to-from), make([]float64, to-from)
		for h := range q.Group {
			ans := oracleAttend(t, q, blocks, i, h)
			for e := range want {
				want[e], tol[e] = want[e]+ans.mass[e], tol[e]+ans.massTol[e]+smallestNormal
			}
		}
		for e, w := range want {
			if got := float64(mass[int(from)+e]); !(math.Abs(got-w) <= tol[e]) {
				t.Fatalf("%s: query %d: mass of entry %d: got %g, want %g +- %g", name, i, e, got, w, tol[e])
			}
		}
	}
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
