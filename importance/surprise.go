// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// maxResidual is where residuals are cut off: a prediction worse than none by that much says
// no more than that it failed.
const maxResidual = 2

// maxOrder bounds surpriseConfig.Order, so that the normal equations fit in an array.
const maxOrder = 8

// surpriseConfig configures a surprise. The zero value is the default.
type surpriseConfig struct {
	Order    int     // past rows of the linear prediction. 0: 4; at most 8
	Entries  int     // entries of the codebook. 0: 16; at most 1024
	HalfLife float64 // rows after which what was learnt counts half. 0: 256
}

func (c surpriseConfig) withDefaults() surpriseConfig {
	if c.Order == 0 {
		c.Order = 4
	}
	if c.Entries == 0 {
		c.Entries = 16
	}
	if c.HalfLife == 0 {
		c.HalfLife = 256
	}
	return c
}

// surprise predicts each row of one KV head (K or V: give each side its own, and K preferably
// with RoPE undone) from the rows before it, and measures how wrong the prediction was. Two predictors run
// side by side:
//
//   - linear: a combination of the last few rows and their running mean, with coefficients by
//     recursive least squares on inner products (fading, ridge); rows count by their direction
//   - memory: the nearest entry of a small codebook of past rows. A row that is like none of
//     them takes the place of the least used entry, others move their entry towards them
//
// The one with the smaller fading error so far speaks; which of them that is does not depend on
// the row itself. A row that is unlike everything before it, a needle, comes out near 1 or above.
//
// State: StateBytes, 4 * (Order + 1 + Entries) * dim bytes and about 1 KiB. Rows are taken one
// by one, so results do not depend on how they were split into calls. Scaling all rows by a
// power of two changes nothing, up to underflow. Not safe for concurrent use.
//
// Source: after predictive coding (Rao and Ballard 1999); as a weight of cached rows it is the
// project's own.
type surprise struct {
	dim    int
	cfg    surpriseConfig
	fade   float64
	seen   int
	past   []float32 // [Order, dim], newest first once turned by head
	head   int       // index of the newest
	mean   []float32 // [dim]
	gram   [maxOrder + 1][maxOrder + 1]float64
	cross  [maxOrder + 1]float64
	book   []float32 // [Entries, dim]
	uses   []float64 // [Entries], fading
	scale  float64   // fading mean of row energies, for rows that are next to zero
	errors [2]fading // of the linear predictor, of the memory
	work   []float64 // [dim]
}

// fading is a mean that forgets.
type fading struct{ sum, weight float64 }

func (f *fading) add(x, fade float64) { f.sum, f.weight = fade*f.sum+x, fade*f.weight+1 }

func (f *fading) mean(empty float64) float64 {
	if f.weight == 0 {
		return empty
	}
	return f.sum / f.weight
}

// newSurprise returns a predictor of rows of dim values.
//
// Errors: quant.ErrShape.
func newSurprise(dim int, cfg surpriseConfig) (*surprise, error) {
	c := cfg.withDefaults()
	switch {
	case dim < 1 || dim > quant.MaxDim:
		return nil, shapeErr("surprise: rows of %d values, want 1 to %d", dim, quant.MaxDim)
	case c.Order < 1 || c.Order > maxOrder:
		return nil, shapeErr("surprise: order %d, want 1 to %d", c.Order, maxOrder)
	case c.Entries < 1 || c.Entries > 1024:
		return nil, shapeErr("surprise: %d entries, want 1 to 1024", c.Entries)
	case !(c.HalfLife >= 1) || math.IsInf(c.HalfLife, 0):
		return nil, shapeErr("surprise: half-life of %v rows, want a number from 1 up", c.HalfLife)
	}
	return &surprise{dim: dim, cfg: c, fade: math.Exp2(-1 / c.HalfLife),
		past: make([]float32, c.Order*dim), mean: make([]float32, dim),
		book: make([]float32, c.Entries*dim), uses: make([]float64, c.Entries),
		work: make([]float64, dim)}, nil
}

// StateBytes returns the bytes of the state.
func (s *surprise) StateBytes() int64 {
	return int64(4*(len(s.past)+len(s.mean)+len(s.book)) + 8*(len(s.uses)+len(s.work)) + 1024)
}

// Clone returns an independent copy.
func (s *surprise) Clone() *surprise {
	c := *s
	c.past, c.mean = slices.Clone(s.past), slices.Clone(s.mean)
	c.book, c.uses = slices.Clone(s.book), slices.Clone(s.uses)
	c.work = slices.Clone(s.work)
	return &c
}

// Add writes the surprise of each row, residual energy over row energy, in [0, 2], and learns
// from it. The first row is 1, a row of zeros 0 where nothing else was to be expected.
//
// dst: [rows]; x: [rows, dim].
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for NaN and infinities. Nothing is
// learnt then.
func (s *surprise) Add(dst []float64, x quant.Rows) error {
	if err := checkRows("row", x, s.dim); err != nil {
		return err
	}
	if len(dst) != x.Len() {
		return shapeErr("surprise: room for %d rows, want %d", len(dst), x.Len())
	}
	for r := range dst {
		dst[r] = s.row(x.Row(r))
	}
	return nil
}

func (s *surprise) row(x []float32) float64 {
	e := energy(x)
	// A row far below the others is predicted well where the residual is as small as it is.
	floor := max(e, s.scale*0x1p-40)
	n := min(s.seen, s.cfg.Order) + 1
	if s.seen == 0 {
		n = 0
	}
	inner := s.inner(x, n)
	linear := cutOff(s.linear(x, n), floor)
	entry, dist := s.nearest(x, e)
	memory := cutOff(dist, floor)
	out := linear
	if s.errors[1].mean(1) < s.errors[0].mean(1) {
		out = memory
	}
	s.learn(x, e, inner, n)
	s.remember(x, entry, memory)
	if s.seen > 0 {
		s.errors[0].add(linear, s.fade)
		s.errors[1].add(memory, s.fade)
	}
	s.seen++
	return out
}

func cutOff(residual, e float64) float64 {
	if e == 0 {
		if residual == 0 {
			return 0
		}
		return maxResidual
	}
	return min(residual/e, maxResidual)
}

// regressor i is past row i, newest first; the last one is the running mean.
func (s *surprise) regressor(i, n int) []float32 {
	if i == n-1 {
		return s.mean
	}
	at := (s.head + i) % s.cfg.Order
	return s.past[at*s.dim : (at+1)*s.dim]
}

func (s *surprise) inner(x []float32, n int) (in [maxOrder + 1]float64) {
	for i := range n {
		in[i] = dot(x, s.regressor(i, n))
	}
	return in
}

// linear returns the residual energy of the linear prediction.
func (s *surprise) linear(x []float32, n int) float64 {
	for d, v := range x {
		s.work[d] = float64(v)
	}
	coef := s.solve(n)
	for i := range n {
		if c := coef[i]; c != 0 {
			for d, v := range s.regressor(i, n) {
				s.work[d] -= c * float64(v)
			}
		}
	}
	var e float64
	for _, v := range s.work {
		e += v * v
	}
	return e
}

// solve returns the coefficients of the n regressors: (gram + ridge) c = cross, by Cholesky. The
// mean stands at maxOrder in the sums, wherever it stands among the regressors.
func (s *surprise) solve(n int) (c [maxOrder + 1]float64) {
	var a [maxOrder + 1][maxOrder + 1]float64
	var trace float64
	for i := range n {
		trace += s.gram[s.slot(i, n)][s.slot(i, n)]
	}
	if !(trace > 0) {
		return c
	}
	for i := range n {
		for j := range i + 1 {
			a[i][j] = s.gram[s.slot(i, n)][s.slot(j, n)]
		}
		a[i][i] += 1e-3 * trace / float64(n)
		c[i] = s.cross[s.slot(i, n)]
	}
	for i := range n {
		for j := range i + 1 {
			v := a[i][j]
			for k := range j {
				v -= a[i][k] * a[j][k]
			}
			if i == j {
				// The ridge keeps it above rounding.
				a[i][i] = math.Sqrt(max(v, 1e-9*trace))
			} else {
				a[i][j] = v / a[j][j]
			}
		}
		for k := range i {
			c[i] -= a[i][k] * c[k]
		}
		c[i] /= a[i][i]
	}
	for i := n - 1; i >= 0; i-- {
		for k := i + 1; k < n; k++ {
			c[i] -= a[k][i] * c[k]
		}
		c[i] /= a[i][i]
	}
	return c
}

func (s *surprise) slot(i, n int) int {
	if i == n-1 {
		return maxOrder
	}
	return i
}

// learn takes the row into the sums of the linear predictor, and into the past.
func (s *surprise) learn(x []float32, e float64, inner [maxOrder + 1]float64, n int) {
	own := e
	// Rows count by their direction, whatever their length, because the residual is relative, too;
	// those far below the usual length count less, or one of them would drown the others.
	if e = max(e, s.scale/16); e > 0 {
		for i := range n {
			a := s.slot(i, n)
			s.cross[a] = s.fade*s.cross[a] + inner[i]/e
			for j := range i + 1 {
				b := s.slot(j, n)
				v := s.fade*s.gram[a][b] + dot(s.regressor(i, n), s.regressor(j, n))/e
				s.gram[a][b], s.gram[b][a] = v, v
			}
		}
	}
	rate := max(1-s.fade, 1/float64(s.seen+1))
	s.scale += rate * (own - s.scale)
	step := float32(rate)
	for d, v := range x {
		// Weighted, not a difference: that of two large rows would overflow.
		s.mean[d] = float32((1-step)*s.mean[d]) + float32(step*v)
	}
	s.head = (s.head + s.cfg.Order - 1) % s.cfg.Order
	copy(s.past[s.head*s.dim:(s.head+1)*s.dim], x)
}

// nearest returns the codebook entry nearest to x, -1 where the codebook is empty, and the
// squared distance; without an entry that is the energy of x.
func (s *surprise) nearest(x []float32, e float64) (int, float64) {
	best, dist := -1, e
	for i, u := range s.uses {
		if u == 0 {
			continue
		}
		c := s.book[i*s.dim : (i+1)*s.dim]
		var d float64
		for j, v := range x {
			r := float64(v) - float64(c[j])
			d += r * r
		}
		if best < 0 || d < dist {
			best, dist = i, d
		}
	}
	return best, dist
}

// remember moves the nearest entry towards the row, or gives the row an entry of its own where
// it is further away than rows usually are.
func (s *surprise) remember(x []float32, entry int, residual float64) {
	weakest := 0
	for i := range s.uses {
		s.uses[i] *= s.fade
		if s.uses[i] < 1e-12 {
			s.uses[i] = 0
		}
		if s.uses[i] < s.uses[weakest] {
			weakest = i
		}
	}
	usual := s.errors[1].mean(0)
	if entry < 0 || residual > usual && residual > 1e-6 {
		copy(s.book[weakest*s.dim:(weakest+1)*s.dim], x)
		s.uses[weakest] = 1
		return
	}
	s.uses[entry]++
	step := float32(max(1/s.uses[entry], 1.0/64))
	c := s.book[entry*s.dim : (entry+1)*s.dim]
	for d, v := range x {
		c[d] = float32((1-step)*c[d]) + float32(step*v)
	}
}

// Limits of surprisalWeight.
const (
	surprisalScale = 3  // nats: about the mean over text, where the weight doubles
	surprisalCap   = 24 // nats: beyond it a token is simply never seen before
)

// surprisalWeight maps the surprisal -log p of a token, in nats, to a weight in [1, 9]:
//
//	1 + min(surprisal, 24) / 3
//
// It rises with surprisal, and a token that was certain keeps weight 1. Slightly negative
// surprisals (rounding) count as 0.
//
// Errors: *ValueError wrapping quant.ErrRange for NaN.
func surprisalWeight(surprisal float64) (float64, error) {
	if math.IsNaN(surprisal) {
		return 0, &ValueError{"surprisal", 0, surprisal, "a number", quant.ErrRange}
	}
	return 1 + min(max(surprisal, 0), surprisalCap)/surprisalScale, nil
}
