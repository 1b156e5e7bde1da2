// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// Calibrate returns an empty index whose coding is fitted to a sample of the rows that will be added: their
// mean, their principal axes, and how many bits each of them takes. It uses at most 10,000 rows, evenly
// spread over the sample; 2,000 are enough for a few hundred values a row.
//
// sample: [rows, dim]. Rows like those of the sample are coded best; others are coded too, see Stats.
//
// Errors: quant.ErrShape for fewer than 64 rows, or options out of range; quant.ErrRange for values that are
// not finite or beyond 1e15; quant.ErrBudget where Bytes do not hold a single bit of 16 components, nor the
// basis; quant.ErrUnsupported, quant.ErrUnavailable for the instruction set.
//
// Source: Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers (1988).
func Calibrate(sample quant.Rows, opts Options) (*Index, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if err := sample.Validate(); err != nil {
		return nil, err
	}
	if n := sample.Len(); n < minSample {
		return nil, fmt.Errorf("kvist/vectors: calibrate: %d rows, want at least %d: %w", n, minSample, quant.ErrShape)
	}
	if err := checkFinite("calibrate", sample); err != nil {
		return nil, err
	}
	products, err := matmul.Open(matmul.Options{ISA: opts.ISA})
	if err != nil {
		return nil, err
	}
	f := &fitting{Options: opts, products: products, rows: spread(sample, maxSample)}
	f.dim = sample.Dim
	c, err := f.fit()
	if err != nil {
		return nil, err
	}
	return newIndex(c), nil
}

// spread returns at most n rows, evenly spread.
func spread(x quant.Rows, n int) quant.Rows {
	if x.Len() <= n {
		return x
	}
	out := quant.Rows{Dim: x.Dim, Data: make([]float32, 0, n*x.Dim)}
	for i := range n {
		out.Data = append(out.Data, x.Row(i*x.Len()/n)...)
	}
	return out
}

// fitting is a calibration under way.
type fitting struct {
	Options
	products *matmul.Engine
	rows     quant.Rows
	dim      int
	mean     []float32
	lengths  []float64 // of the rows without the mean
	length   float64   // the usual one
}

func (f *fitting) fit() (*coding, error) {
	f.center()
	if f.length < leastLength {
		return nil, fmt.Errorf("kvist/vectors: calibrate: rows of a length of %g without their mean, want %g: %w", f.length, leastLength,
			quant.ErrRange)
	}
	all, err := f.covariance(func(int) bool { return true })
	if err != nil {
		return nil, err
	}
	_, basis := eigen(all, f.dim)
	variance, axes, err := f.crossFit()
	if err != nil {
		return nil, err
	}
	p, err := f.allocate(basis, variance)
	if err != nil {
		return nil, err
	}
	p.Error = p.expected(variance)
	if p.Slope, err = f.crossSlope(p, basis, axes); err != nil {
		return nil, err
	}
	return f.finish(p, basis)
}

// finish returns the coding with the first axes of a basis.
func (f *fitting) finish(p params, basis []float64) (*coding, error) {
	stored, scales := packBasis(basis[:min(p.comps(), f.dim)*f.dim], f.dim)
	return p.finish(stored, scales, f.ISA)
}

// center takes the mean off the rows and scales them to one length, as they will be coded.
func (f *fitting) center() {
	n := f.rows.Len()
	f.rows.Data = slices.Clone(f.rows.Data)
	sum := make([]float64, f.dim)
	for i := range n {
		if f.Metric == Cosine {
			unit(f.rows.Row(i))
		}
		for j, v := range f.rows.Row(i) {
			sum[j] += float64(v)
		}
	}
	f.mean = make([]float32, f.dim)
	for j := range sum {
		f.mean[j] = float32(sum[j] / float64(n))
	}
	f.lengths = make([]float64, n)
	var energy float64
	for i := range n {
		row := f.rows.Row(i)
		for j, m := range f.mean {
			row[j] -= m
		}
		e := dot64(row, row)
		f.lengths[i] = math.Sqrt(e)
		energy += e
	}
	f.length = math.Sqrt(energy / float64(n))
	if f.length == 0 {
		f.length = 1 // all rows are equal
	}
	for i, l := range f.lengths {
		if l > 0 {
			scaleBy(f.rows.Row(i), float32(f.length/l))
		}
	}
}

// covariance returns the second moments of the rows that in selects.
func (f *fitting) covariance(in func(i int) bool) ([]float64, error) {
	const block = 512
	sum := make([]float64, f.dim*f.dim)
	part := make([]float32, f.dim*f.dim)
	t := make([]float32, f.dim*block) // [dim, block]
	n, at := 0, 0
	flush := func() error {
		if err := f.products.F32(part, t, t, f.dim, f.dim, block); err != nil {
			return err
		}
		for i, v := range part {
			sum[i] += float64(v)
		}
		clear(t)
		at = 0
		return nil
	}
	for i := range f.rows.Len() {
		if !in(i) {
			continue
		}
		for j, v := range f.rows.Row(i) {
			t[j*block+at] = v
		}
		n, at = n+1, at+1
		if at == block {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	for i := range sum {
		sum[i] /= float64(n)
	}
	for i := range f.dim { // equal on both sides, to the last bit
		for j := range i {
			sum[j*f.dim+i] = sum[i*f.dim+j]
		}
	}
	return sum, nil
}

// crossFit returns the variances along the principal axes as rows show that the axes were not fitted to: the
// variances of one half of the sample along the axes of the other. In sample the first are too large and
// the last too small. It also returns the axes that were fitted to the rows of even number.
func (f *fitting) crossFit() (out, even []float64, err error) {
	var half [2][]float64
	var axes [2][]float64
	for h := range half {
		if half[h], err = f.covariance(func(i int) bool { return i%2 == h }); err != nil {
			return nil, nil, err
		}
		_, axes[h] = eigen(slices.Clone(half[h]), f.dim)
	}
	out = make([]float64, f.dim)
	for h := range half {
		for k := range out {
			u := axes[h][k*f.dim : (k+1)*f.dim]
			out[k] += quadratic(half[1-h], u) / 2
		}
	}
	floor := 1e-4 * f.length * f.length / float64(f.dim)
	for k := range out {
		out[k] = max(out[k], floor)
	}
	return out, axes[0], nil
}

// quadratic returns u' m u.
func quadratic(m, u []float64) (sum float64) {
	for i, x := range u {
		var s float64
		for j, y := range m[i*len(u) : (i+1)*len(u)] {
			s += y * u[j]
		}
		sum += x * s
	}
	return sum
}

// allocate divides the bits: always the cell whose worth falls most by another bit, for as long as there are
// bytes.
func (f *fitting) allocate(basis, variance []float64) (params, error) {
	cells := (f.dim + trellis.CellDim - 1) / trellis.CellDim
	p := params{Dim: f.dim, Metric: f.Metric, Mean: f.mean, Length: float32(f.length), Slope: 1}
	worth := make([]float64, cells)
	sd := make([]float32, cells*trellis.CellDim)
	for k := range sd {
		sd[k] = 1
	}
	for k, v := range variance {
		u := basis[k*f.dim : (k+1)*f.dim]
		var along float64
		for i, m := range f.mean {
			along += float64(m) * u[i]
		}
		sd[k] = float32(math.Sqrt(v))
		worth[k/trellis.CellDim] += v * math.Pow(v+along*along, f.tilt())
	}
	f.factors(&p)
	widths := make([]uint8, cells)
	for {
		best, gain := -1, 0.0
		for c, b := range widths {
			if b == trellis.MaxWidth {
				continue
			}
			if g := worth[c] * (trellis.Distortion(int(b)) - trellis.Distortion(int(b)+1)); g > gain {
				best, gain = c, g
			}
		}
		if best < 0 {
			break
		}
		widths[best]++
		try := p
		try.setCells(widths, sd, variance)
		if try.bytes(f.Rows) > f.Bytes {
			break
		}
		p = try
	}
	if len(p.Cells) == 0 {
		return p, fmt.Errorf("kvist/vectors: calibrate: %g bytes a row do not hold a code, a factor and a share "+
			"of the basis: %w", f.Bytes, quant.ErrBudget)
	}
	return p, nil
}

// expected returns the share of the variance that the codes lose.
func (p *params) expected(variance []float64) float64 {
	var lost, all float64
	for k, v := range variance {
		b := 0
		if c := k / trellis.CellDim; c < len(p.Cells) {
			b = int(p.Cells[c])
		}
		all += v
		lost += v * trellis.Distortion(b)
	}
	return lost / all
}

// setCells sets the widths of the cells up to the last that has bits, and how many of them are the head.
func (p *params) setCells(widths []uint8, sd []float32, variance []float64) {
	n := len(widths)
	for n > 0 && widths[n-1] == 0 {
		n--
	}
	p.Cells = slices.Clone(widths[:n])
	p.SD = sd[:p.comps()]
	p.Head = n
	if n >= leastCells {
		p.Head = p.head(variance)
	}
}

// What a head is for: it has to decide which rows may be among the best, and be quicker than whole rows. On
// sentences of 384 values and on token vectors of 640 values (bench/results/vectors.md), heads that leave a
// tail of mostTail miss 0.2 to 2 % of an exhaustive search's ten, and heads of more than mostHead save no
// time.
const (
	leastCells = 12   // of a row that has a head
	mostTail   = 0.23 // standard deviation of what tails add to scores, over that of scores
	mostHead   = 0.6  // of the cells
)

// head returns the number of cells of the head: the fewest whose tail adds little to scores, or all where
// those would be most of the cells. Queries are taken to be like rows, so that a component adds the square of
// its variance to that of scores, less what its coding loses. The first cell does not count: where rows are of
// several kinds, it tells the kinds apart, and neighbours are of one kind.
func (p *params) head(variance []float64) int {
	adds := make([]float64, len(p.Cells))
	var rest float64
	for k, v := range variance[:min(len(variance), p.comps())] {
		c := k / trellis.CellDim
		a := v * v * (1 - trellis.Distortion(int(p.Cells[c])))
		if c > 0 {
			adds[c] += a
			rest += a
		}
	}
	n, all := 1, rest
	for ; n < len(adds) && rest > mostTail*mostTail*all; n++ {
		rest -= adds[n]
	}
	if float64(n) > mostHead*float64(len(adds)) {
		return len(adds)
	}
	return n
}

// bytes returns the bytes of each of so many rows.
func (p *params) bytes(rows int) float64 {
	if rows == 0 {
		return float64(p.rowBytes())
	}
	return float64(p.rowBytes()) + float64(p.sharedBytes())/float64(rows)
}

// factors chooses how factors are stored. Factors follow the lengths of the rows: one byte has 255 steps over
// what the sample has, half as much below and twice as much above; if that is a factor of more than 64,
// factors are bfloat16 numbers.
func (f *fitting) factors(p *params) {
	low, high := math.Inf(1), 0.0
	for _, l := range f.lengths {
		if l > 0 {
			low, high = min(low, l), max(high, l)
		}
	}
	if high == 0 {
		low, high = 1, 1
	}
	low, high = low/f.length/2, high/f.length*2
	p.Top = high
	if high/low <= 64 {
		p.Ratio = math.Pow(low/high, 1.0/254)
	}
}
