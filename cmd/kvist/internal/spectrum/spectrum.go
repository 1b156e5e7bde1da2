// SPDX-License-Identifier: Apache-2.0

// Package spectrum measures how many directions a set of rows really uses.
//
// # Concepts
//
// The covariance of the rows is accumulated as they stream by, [dim, dim] whatever their number;
// its eigenvalues, normalised to sum to one, are the spectrum. Of fewer rows than dim it is the matrix
// of their inner products, [rows, rows], that has them. Effective rank is the exponential of
// the spectrum's entropy: dim for white rows, 1 for rows along one line. Source: Roy and
// Vetterli, "The effective rank" (2007).
//
// # Concurrency
//
// An Accumulator belongs to one goroutine.
package spectrum

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"

	"github.com/kvist-project/kvist/quant"
)

// MaxDim is the longest row: beyond it the eigenvalues take minutes.
const MaxDim = 2048

// chunk is the rows that are folded into the covariance at once.
const chunk = 256

// Accumulator takes rows and keeps their sum and their second moments.
type Accumulator struct {
	dim     int
	rows    int64
	skipped int64
	sum     []float64
	second  *mat.SymDense // nil while all rows are pending
	pending []float64     // up to chunk rows
}

// New returns an empty accumulator for rows of dim values.
//
// Errors: quant.ErrTooLarge beyond MaxDim, quant.ErrShape below 1.
func New(dim int) (*Accumulator, error) {
	if dim < 1 {
		return nil, fmt.Errorf("kvist/spectrum: rows of %d values: %w", dim, quant.ErrShape)
	}
	if dim > MaxDim {
		return nil, fmt.Errorf("kvist/spectrum: rows of %d values, want at most %d: %w", dim,
			MaxDim, quant.ErrTooLarge)
	}
	return &Accumulator{dim: dim, sum: make([]float64, dim)}, nil
}

// Add adds rows, [n, dim]. Rows with NaN or Inf are left out and counted.
//
// Errors: quant.ErrShape.
func (a *Accumulator) Add(rows []float32) error {
	if len(rows)%a.dim != 0 {
		return fmt.Errorf("kvist/spectrum: %d values are not rows of %d: %w", len(rows), a.dim,
			quant.ErrShape)
	}
	for ; len(rows) > 0; rows = rows[a.dim:] {
		row := rows[:a.dim]
		if !finite(row) {
			a.skipped++
			continue
		}
		for i, v := range row {
			a.sum[i] += float64(v)
			a.pending = append(a.pending, float64(v))
		}
		a.rows++
		if len(a.pending) == chunk*a.dim {
			a.fold()
		}
	}
	return nil
}

func finite(row []float32) bool {
	for _, v := range row {
		if x := float64(v); math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}

func (a *Accumulator) fold() {
	if len(a.pending) == 0 {
		return
	}
	if a.second == nil {
		a.second = mat.NewSymDense(a.dim, nil)
	}
	x := mat.NewDense(len(a.pending)/a.dim, a.dim, a.pending)
	a.second.SymRankK(a.second, 1, x.T())
	a.pending = a.pending[:0]
}

// Spectrum is the result. All numbers are finite.
type Spectrum struct {
	Rows          int64   `json:"rows"`           // that were measured
	NonFinite     int64   `json:"nonfinite_rows"` // left out
	Dim           int     `json:"dim"`
	EffectiveRank float64 `json:"effective_rank"` // 0 where all rows are equal
	TopShare      float64 `json:"top_share"`      // of the largest eigenvalue in their sum
	Components90  int     `json:"components_90"`  // that hold 90 % of the variance
	Components99  int     `json:"components_99"`
}

// Result returns the spectrum of the rows so far. It works in the accumulator's own memory: nothing
// can be added after it.
//
// Errors: quant.ErrRange where the eigenvalues do not converge.
func (a *Accumulator) Result() (Spectrum, error) {
	s := Spectrum{Rows: a.rows, NonFinite: a.skipped, Dim: a.dim}
	if a.rows == 0 {
		return s, nil
	}
	var cov *mat.SymDense
	var energy float64
	if a.second == nil && a.rows < int64(a.dim) {
		cov, energy = a.gram()
	} else {
		cov, energy = a.covariance()
	}
	values, ok := eigenvalues(cov)
	if !ok {
		return s,
			fmt.Errorf("kvist/spectrum: eigenvalues of a covariance of %d do not converge: %w",
				a.dim, quant.ErrRange)
	}
	s.summarise(values, energy)
	return s, nil
}

// eigenvalues returns those of m, ascending, and overwrites m: mat.EigenSym would copy it, which takes
// 32 MiB more at MaxDim.
func eigenvalues(m *mat.SymDense) (values []float64, ok bool) {
	n := m.SymmetricDim()
	values = make([]float64, n)
	work := make([]float64, 1)
	lapack64.Syev(lapack.EVNone, m.RawSymmetric(), values, work, -1)
	work = make([]float64, int(work[0]))
	ok = lapack64.Syev(lapack.EVNone, m.RawSymmetric(), values, work, len(work))
	return values, ok
}

// covariance returns that of the rows, in the place of the second moments, and the mean of |x|^2.
func (a *Accumulator) covariance() (cov *mat.SymDense, energy float64) {
	a.fold()
	a.pending = nil
	n := float64(a.rows)
	for i := range a.dim {
		energy += a.second.At(i, i) / n
		for j := i; j < a.dim; j++ {
			a.second.SetSym(i, j, a.second.At(i, j)/n-a.sum[i]/n*(a.sum[j]/n))
		}
	}
	return a.second, energy
}

// gram returns the inner products of the rows less their mean, divided by their number, and the mean
// of |x|^2. Its eigenvalues are the nonzero ones of the covariance. With few rows it is much smaller
// than a covariance of [dim, dim].
func (a *Accumulator) gram() (g *mat.SymDense, energy float64) {
	n := float64(a.rows)
	x := mat.NewDense(int(a.rows), a.dim, append([]float64(nil), a.pending...))
	for r := range int(a.rows) {
		row := x.RawRowView(r)
		for i, v := range row {
			energy += v * v / n
			row[i] = v - a.sum[i]/n
		}
	}
	g = mat.NewSymDense(int(a.rows), nil)
	g.SymOuterK(1/n, x)
	return g, energy
}

// summarise fills in what follows from the eigenvalues, which ascend. Those below the rounding of
// the second moments, which have the size of energy, count as zero.
func (s *Spectrum) summarise(values []float64, energy float64) {
	floor := energy * 1e-13
	var total float64
	for i, v := range values {
		if v < floor {
			values[i] = 0
		}
		total += values[i]
	}
	if !(total > 0) {
		return
	}
	var entropy, held float64
	for i := len(values) - 1; i >= 0; i-- {
		p := values[i] / total
		if p > 0 {
			entropy -= p * math.Log(p)
		}
		if held < 0.90 {
			s.Components90++
		}
		if held < 0.99 {
			s.Components99++
		}
		held += p
	}
	s.TopShare, s.EffectiveRank = values[len(values)-1]/total, math.Exp(entropy)
}
