// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/cpu/scan"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/trellis"
)

// coding is how the rows of an index are coded. It is immutable.
type coding struct {
	params
	axes     []int8    // [n, dim] the basis as it is stored, nil for a rotation
	scales   []float32 // [n]
	basis    []float32 // the same, orthonormal, in panels of 16 axes: see matmul.Engine.Panels
	rotation *rotation
	parts    [2]*scan.Section // head and tail; the tail may have no components
	table    *[256]float32    // of factors of one byte
	scan     *scan.Engine
	products *matmul.Engine
}

// params are what a file keeps of a coding, beside the basis.
type params struct {
	Dim     int
	Metric  Metric
	Seed    uint64 // of the rotation; the basis is nil then
	Rotated bool
	Mean    []float32 // [dim], nil for a rotation
	SD      []float32 // [comps] standard deviations, all 1 for a rotation
	Cells   []uint8   // widths of the cells of 16 components
	Head    int       // cells of the head
	// Length is the usual length of a row without the mean; rows are scaled to it before they are coded.
	Length float32
	// Slope makes products unbiased.
	Slope float32
	// Top is the largest factor, 0 if there is none. Ratio is that of a factor of one byte and the one before;
	// 0 if factors are bfloat16 numbers.
	Top, Ratio float64
	// Error is the relative squared error that is expected of rows like those of the calibration.
	Error float64
}

// comps returns the number of components, padded to whole cells.
func (p *params) comps() int { return trellis.CellDim * len(p.Cells) }

// factorBytes returns the bytes of a row's factor.
func (p *params) factorBytes() int {
	if p.Ratio == 0 {
		return 2
	}
	return 1
}

func (p *params) normBytes() int {
	if p.Metric == L2 {
		return 4
	}
	return 0
}

// rowBytes returns the bytes of a row without its id.
func (p *params) rowBytes() int {
	return trellis.TileBytes(p.Cells)/trellis.TileRows + p.factorBytes() + p.normBytes()
}

// sharedBytes returns the bytes of the mean, the basis and the deviations in a file, with the scales of the
// basis.
func (p *params) sharedBytes() int {
	if p.Rotated {
		return 0
	}
	return 4*p.Dim + (p.Dim+4)*min(p.Dim, p.comps()) + 4*p.comps()
}

func (p *params) part(i int) []uint8 {
	if i == 0 {
		return p.Cells[:p.Head]
	}
	return p.Cells[p.Head:]
}

// finish makes what is derived from the parameters.
func (p params) finish(axes []int8, scales []float32, isa string) (*coding, error) {
	c := &coding{params: p, axes: axes, scales: scales}
	if !p.Rotated {
		c.basis = panels(unpackBasis(axes, scales, p.Dim, p.comps()), p.Dim)
	}
	var err error
	for i := range c.parts {
		if c.parts[i], err = scan.NewSection(p.part(i)); err != nil {
			return nil, err
		}
	}
	if c.scan, err = scan.Open(scan.Options{ISA: isa}); err != nil {
		return nil, err
	}
	if c.products, err = matmul.Open(matmul.Options{ISA: isa, Workers: 1}); err != nil {
		return nil, err
	}
	if p.Rotated {
		if c.rotation, err = newRotation(p.comps(), p.Seed); err != nil {
			return nil, err
		}
	}
	if p.Ratio > 0 {
		c.table = new([256]float32)
		for i, f := 0, p.Top; i < 255; i, f = i+1, f*p.Ratio {
			c.table[i] = float32(f) // the last stays zero
		}
	}
	return c, nil
}

// components writes the products of rows [n, dim] with the axes, y [n, comps].
func (c *coding) components(y, x []float32, n int) error {
	if !c.Rotated {
		return c.products.Panels(y, c.comps(), x, c.Dim, c.basis, n, c.comps(), c.Dim, false)
	}
	for i := range n {
		row := y[i*c.comps() : (i+1)*c.comps()]
		clear(row[copy(row, x[i*c.Dim:(i+1)*c.Dim]):])
		c.rotation.forward(row)
	}
	return nil
}

// restore writes the row whose components are y, without the mean.
func (c *coding) restore(x, y []float32) {
	if c.Rotated {
		t := make([]float32, c.comps())
		copy(t, y)
		c.rotation.inverse(t)
		copy(x, t)
		return
	}
	clear(x)
	for p := 0; p < len(y); p += trellis.CellDim {
		part := (*[trellis.CellDim]float32)(y[p:])
		for j := range x {
			var sum float32
			for i, b := range c.basis[(p*c.Dim + j*trellis.CellDim):][:trellis.CellDim] {
				sum += part[i] * b
			}
			x[j] += sum
		}
	}
}

// axis returns axis k of a basis.
func (c *coding) axis(k int) []float32 {
	out := make([]float32, c.Dim)
	for j := range out {
		out[j] = c.basis[(k/16*c.Dim+j)*16+k%16]
	}
	return out
}

// coded is what rows of a tile became.
type coded struct {
	head, tail []byte
	factors    []byte
	norms      []float32
	bounded    int     // rows whose factor was too large
	energy     float64 // sum over rows of the squared length without the mean, in units of Length^2
	damage     float64 // sum over rows of the relative squared error of the direction
	n          int
}

// coder has the work space of one goroutine that codes rows.
type coder struct {
	*coding
	x, y, z, levels []float32
}

// tile codes up to 16 rows [n, dim], which are finite.
func (w *coder) tile(x []float32) (*coded, error) {
	c, n, comps := w.coding, len(x)/w.Dim, w.comps()
	const rows = trellis.TileRows
	w.x, w.y = resize(w.x, rows*c.Dim), resize(w.y, rows*comps)
	w.z, w.levels = resize(w.z, rows*comps), resize(w.levels, rows*comps)
	out := &coded{n: n, factors: make([]byte, rows*c.factorBytes())}
	if c.Metric == L2 {
		out.norms = make([]float32, rows)
	}
	var length [rows]float64
	clear(w.x)
	for r := range n {
		row := w.x[r*c.Dim : (r+1)*c.Dim]
		copy(row, x[r*c.Dim:(r+1)*c.Dim])
		if c.Metric == Cosine {
			unit(row)
		}
		if c.Metric == L2 {
			out.norms[r] = float32(dot64(row, row))
		}
		for i, m := range c.Mean {
			row[i] -= m
		}
		length[r] = math.Sqrt(dot64(row, row))
		if length[r] > 0 {
			scaleBy(row, float32(float64(c.Length)/length[r]))
		}
	}
	if err := c.components(w.y, w.x, rows); err != nil {
		return nil, err
	}
	head := trellis.CellDim * c.Head
	for i, part := range c.parts {
		lo, hi := 0, head
		if i == 1 {
			lo, hi = head, comps
		}
		d := hi - lo
		for r := range rows {
			for k := range d {
				w.z[r*d+k] = w.y[r*comps+lo+k] / c.SD[lo+k]
			}
		}
		tile := make([]byte, part.TileBytes())
		levels := w.levels[rows*lo : rows*hi]
		if err := c.scan.Encode(tile, part, w.z[:rows*d], levels); err != nil {
			return nil, err
		}
		if i == 0 {
			out.head = tile
		} else {
			out.tail = tile
		}
	}
	for r := range n {
		w.setFactor(out, r, length[r])
	}
	return out, nil
}

// level returns what component k of row r of the last tile was coded as.
func (w *coder) level(r, k int) float32 {
	head, comps := trellis.CellDim*w.Head, w.comps()
	if k < head {
		return w.levels[r*head+k]
	}
	return w.levels[trellis.TileRows*head+r*(comps-head)+k-head]
}

// setFactor stores the factor of a row: its length over that of what its codes stand for.
func (w *coder) setFactor(out *coded, r int, length float64) {
	var hh, hy float64
	for k, sd := range w.SD {
		h := float64(sd) * float64(w.level(r, k))
		hh += h * h
		hy += h * float64(w.y[r*w.comps()+k])
	}
	f := 0.0
	if hh > 0 {
		f = length / math.Sqrt(hh)
		if yy := float64(w.Length) * float64(w.Length); length > 0 {
			out.damage += 1 - hy*hy/(hh*yy)
		}
	}
	out.energy += length * length / (float64(w.Length) * float64(w.Length))
	if w.putFactor(out.factors, r, f) {
		out.bounded++
	}
}

// putFactor writes the code of a factor and reports whether it was too large.
func (c *coding) putFactor(codes []byte, r int, f float64) (bounded bool) {
	if c.table == nil {
		if c.Top > 0 && f > c.Top {
			f, bounded = c.Top, true
		}
		h := quant.F32ToBF16(float32(f))
		codes[2*r], codes[2*r+1] = byte(h), byte(h>>8)
		return bounded
	}
	k := 255
	if f > 0 {
		k = int(math.Round(math.Log(f/c.Top) / math.Log(c.Ratio)))
		k = max(k, 0)
		if k > 254 && k < 254+64 {
			k = 254 // a little below the smallest factor
		}
		k = min(k, 255)
	}
	codes[r] = byte(k)
	return f > c.Top/c.Ratio
}

// factor returns the factor that putFactor stored.
func (c *coding) factor(codes []byte, r int) float32 {
	if c.table != nil {
		return c.table[codes[r]]
	}
	return quant.BF16ToF32(uint16(codes[2*r]) | uint16(codes[2*r+1])<<8)
}

// checkFinite reports rows that cannot be coded.
func checkFinite(what string, x quant.Rows) error {
	for i := range x.Len() {
		for j, v := range x.Row(i) {
			if !(math.Abs(float64(v)) <= maxValue) {
				return fmt.Errorf("kvist/vectors: %s: value %d of row %d is %g: %w", what, j, i, v, quant.ErrRange)
			}
		}
	}
	return nil
}

// leastLength keeps one over the length of rows finite in float32, with room.
const leastLength = 1e-30

// maxValue keeps squares of rows finite in float32.
const maxValue = 1e15

func unit(x []float32) {
	if n := math.Sqrt(dot64(x, x)); n > 0 {
		scaleBy(x, float32(1/n))
	}
}

func scaleBy(x []float32, f float32) {
	for i := range x {
		x[i] *= f
	}
}

// dot64 adds in four lanes, each product rounded before it is added.
func dot64(a, b []float32) float64 {
	b = b[:len(a)]
	var s [4]float64
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s[0] += float64(float64(a[i]) * float64(b[i]))
		s[1] += float64(float64(a[i+1]) * float64(b[i+1]))
		s[2] += float64(float64(a[i+2]) * float64(b[i+2]))
		s[3] += float64(float64(a[i+3]) * float64(b[i+3]))
	}
	for ; i < len(a); i++ {
		s[0] += float64(float64(a[i]) * float64(b[i]))
	}
	return s[0] + s[1] + (s[2] + s[3])
}

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
