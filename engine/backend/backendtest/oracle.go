// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"math"
	"math/cmplx"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
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
	rope         *quant.Rope // of the table, for offset
	stride       int32
	limit        int32
	tokens       int32
	meanK, meanV []float32 // rounded to binary16 when placed
	metric       *frame.Metric
	keysOnly     bool
	kData, vData *quant.Rows // used instead of drawn rows
}

// known is a block with everything that the reference needs.
type known struct {
	spec
	handle backend.Block
	kRows  quant.Rows // as quant.Decode gives them: without mean, in the metric
	vRows  quant.Rows // without mean
	scales []float32  // row scales of K
	vUnits []float32  // row scales of V
}

// place centres and packs a block with package quant and puts it into the arena.
func place(a *arena, s spec, dimK, dimV int) known {
	side := func(c quant.Coding, data *quant.Rows, fam quanttest.Family, dim int, seed, draw uint64,
		mean []byte, m *frame.Metric) (backend.Side, quant.Rows, []byte) {
		if fam == "" {
			fam = quanttest.Gaussian
		}
		x := quanttest.Rows(fam, s.rows, dim, draw)
		if data != nil {
			x = quant.Rows{Dim: dim, Data: slices.Clone(data.Data)}
		}
		if mean != nil || m != nil {
			require.NoError(a.t, frame.Center(x, x, mean, m))
		}
		p := pack(a.t, c, x, seed)
		return backend.Side{Coding: c, Data: a.put(p), Seed: seed},
			unpack(a.t, c, p, s.rows, dim, seed), p
	}
	k := known{scales: make([]float32, s.rows), vUnits: make([]float32, s.rows)}
	h := backend.Block{Rows: int32(s.rows), Base: s.base, Noise: s.noise, Offset: s.offset,
		Stride: s.stride, Limit: s.limit, Tokens: s.tokens, Metric: s.metric}
	var meanK, meanV []byte
	meanK, s.meanK, h.MeanK = placeMean(a, s.meanK)
	meanV, s.meanV, h.MeanV = placeMean(a, s.meanV)
	var packed, packedV []byte
	h.K, k.kRows, packed = side(s.k, s.kData, s.kFam, dimK, s.seedK, 2*s.draw, meanK, s.metric)
	if !s.keysOnly {
		h.V, k.vRows, packedV = side(s.v, s.vData, s.vFam, dimV, s.seedV, 2*s.draw+1, meanV, nil)
		require.NoError(a.t, quant.RowScales(k.vUnits, s.v, packedV, s.rows, dimV))
	}
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
	k.spec, k.handle = s, h
	return k
}

// placeMean stores a mean, and returns it as rounded.
func placeMean(a *arena, mean []float32) (stored []byte, rounded []float32, s backend.Span) {
	if mean == nil {
		return nil, nil, s
	}
	stored = make([]byte, frame.MeanBytes(len(mean)))
	require.NoError(a.t, frame.PutMean(stored, quant.Rows{Dim: len(mean), Data: mean}))
	rounded = make([]float32, len(mean))
	require.NoError(a.t, frame.Mean(rounded, stored))
	return stored, rounded, a.put(stored)
}

// ropeOf returns the rotary embedding of the first block that has one.
func ropeOf(ks []known) *quant.Rope {
	for i := range ks {
		if ks[i].rope != nil {
			return ks[i].rope
		}
	}
	return nil
}

// place returns the position of row r relative to the base.
func (b *known) place(r int) int64 {
	switch {
	case b.pos != nil:
		return int64(b.pos[r])
	case b.stride > 0:
		return int64(r) * int64(b.stride)
	}
	return int64(r)
}

// sees reports whether query i sees row r.
func (b *known) sees(q *backend.Queries, i, r int) bool {
	if b.limit > 0 && b.place(r) >= int64(b.limit) {
		return false
	}
	if q.Pos == nil {
		return true
	}
	d := q.Pos[i] - (b.base + b.place(r))
	return d >= 0 && (q.Window == 0 || d < q.Window)
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
	entry, block, row int
	score             float64 // with all biases
	slack             float64 // how far a backend's score may be off
	v                 []float64
	vLen              float64   // at least the length of v: of the coded row plus that of the mean
	unit              float64   // of a row whose weight is rounded to digits, without them 0
	codes             []float64 // its v without mean, in units
}

// met is a query head as the rows of a block meet it.
type met struct {
	turned, vec []float64 // in the original basis; in the metric
	norm        float64   // |vec|
	off         float64   // how far a backend's vec may be off, in eps, beside rounding each value
	mean, plain float64   // <turned, mean>, and |turned| |mean|
	step        float64   // how far a value of vec may be off where queries are rounded to digits
}

// meet turns a query by the block's offset and brings it into the block's metric.
func (b *known) meet(q []float32) met {
	m := met{turned: make([]float64, len(q))}
	for d, x := range q {
		m.turned[d] = float64(x)
	}
	if b.offset != 0 {
		turnFloat64(m.turned, b.rope, b.offset)
	}
	length := math.Sqrt(dot64(m.turned, m.turned))
	m.vec = m.turned
	if b.metric != nil {
		var inverse float64 // norm of A^-1
		m.vec, inverse = throughMetric(b.metric, m.turned)
		m.off = 5 * inverse * length // of the turn, which the metric may enlarge
		if b.metric.Diagonal() == nil {
			m.off += float64(len(q)) * inverse * length // of its own sums
		}
	}
	m.norm = math.Sqrt(dot64(m.vec, m.vec))
	if digits.take(b, len(q)) {
		m.step = digits.Query * peakOf(m.vec, b.seedK)
	}
	if b.meanK != nil {
		mean := floats64(b.meanK)
		m.mean = dot64(m.turned, mean)
		m.plain = length * math.Sqrt(dot64(mean, mean))
	}
	return m
}

// throughMetric returns A^-T q and a bound of the norm of A^-1.
func throughMetric(m *frame.Metric, q []float64) (out []float64, norm float64) {
	out = make([]float64, len(q))
	for i, a := range m.Diagonal() {
		out[i] = q[i] / float64(a)
		norm = max(norm, 1/float64(a))
	}
	for at, x := range m.Inverse() {
		out[at%len(q)] += float64(x) * q[at/len(q)]
		norm += float64(x) * float64(x)
	}
	if m.Diagonal() == nil {
		norm = math.Sqrt(norm)
	}
	return out, norm
}

func floats64(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

// oracleScores returns the rows that head h of query i sees, in the order of its list.
func oracleScores(q *backend.Queries, blocks []known, i, h int) []scored {
	at := (i*q.Group + h) * q.HeadDim
	var all []scored
	for entry, bi := range q.BlockIdx[q.BlockPtr[i]:q.BlockPtr[i+1]] {
		b := &blocks[bi]
		m := b.meet(q.Q[at : at+q.HeadDim])
		for r := range b.rows {
			if b.sees(q, i, r) {
				row := b.score(q, &m, r)
				row.entry, row.block = entry, int(bi)
				all = append(all, row)
			}
		}
	}
	return all
}

// score computes the score of a row by the formula of package backend.
func (b *known) score(q *backend.Queries, m *met, r int) scored {
	scale := float64(q.Scale)
	var s, kk float64
	for d, y := range b.kRows.Row(r) {
		s += m.vec[d] * float64(y)
		kk += float64(y) * float64(y)
	}
	s *= scale
	lengths := m.norm * math.Sqrt(kk)
	slack := productSlack(q, b, lengths, s) + eps*math.Abs(scale)*m.off*math.Sqrt(kk)
	slack += math.Abs(scale) * m.step * math.Sqrt(float64(q.HeadDim)*kk)
	if b.meanK != nil {
		slack += productSlack(q, b, m.plain, 4*scale*m.mean)
		s += scale * m.mean
	}
	if q.Softcap > 0 {
		s = float64(q.Softcap) * math.Tanh(s/float64(q.Softcap))
	}
	extra := 0.0
	switch {
	case b.count != nil:
		extra += math.Log(float64(b.count[r]))
	case b.tokens > 0:
		extra += math.Log(float64(b.tokens))
	}
	if b.bias != nil {
		extra += float64(b.bias[r])
	}
	noise := 0.5 * scale * scale * m.norm * m.norm * float64(b.noise) *
		float64(b.scales[r]) * float64(b.scales[r])
	row := scored{row: r, score: s + extra - noise, slack: slack + sumSlack(s, extra, noise)}
	if m.norm > 0 {
		row.slack += eps * 2 * noise * m.off / m.norm
	}
	if !b.keysOnly {
		row.v = floats64(b.vRows.Row(r))
		row.vLen = math.Sqrt(dot64(row.v, row.v))
		if m.step > 0 && b.vUnits[r] > 0 {
			u := float64(b.vUnits[r])
			row.unit = u
			for _, x := range row.v {
				row.codes = append(row.codes, math.Abs(x)/u)
			}
		}
		if b.meanV != nil {
			mean := floats64(b.meanV)
			row.vLen += math.Sqrt(dot64(mean, mean))
			for d, x := range mean {
				row.v[d] += x
			}
		}
	}
	return row
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
	out, tol      []float64
	lse, lseTol   float64
	mass, massTol []float64 // per entry of the query's list
}

// oracleAttend is the attention of one head in float64, with the tolerance of the result.
func oracleAttend(t testing.TB, q *backend.Queries, blocks []known, i, h int) answer {
	rows := oracleScores(q, blocks, i, h)
	entries := q.BlockPtr[i+1] - q.BlockPtr[i]
	ans := answer{out: make([]float64, q.HeadDimV), tol: make([]float64, q.HeadDimV),
		mass: make([]float64, entries), massTol: make([]float64, entries)}
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
				ans.out[d] += p[j] * v
			}
		}
	}
	ans.lse = top + math.Log(sum)
	tol := attendTolerance(t, q, rows, p, ans.lse)
	for d := range ans.tol {
		ans.tol[d] = tol.out
	}
	digits.weights(ans.tol, rows, p)
	ans.lseTol = tol.lse
	for j, r := range rows {
		ans.mass[r.entry] += p[j]
		ans.massTol[r.entry] += p[j] * (probabilitySlack(r.slack, r.score, ans.lse, 1) + tol.weights +
			eps*(tileTerms+8))
	}
	return ans
}
