// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// A row is an outlier from outlierOctaves on: 64 times the median size of its lane. It is coded with
// outlierKeep octaves more relative precision than other rows. With their step, one row of 10^8 would
// take 27 bits for every value.
const (
	outlierOctaves = 6
	outlierKeep    = 5
)

// The range of the transform mode. Values stay below 2^maxExponent, so that sums over a row are
// finite. Rows whose median size is below 2^minExponent would need steps below the range of float32.
const (
	maxExponent = 116
	minExponent = -104
)

// few is the number of rows below which no row is an outlier.
const few = 4

// Typical returns rows, [n, dim], without outliers. It returns rows itself if there are none.
// Distances count from the median of each column over some of the rows.
func Typical(rows []float32, dim int) []float32 {
	n := len(rows) / dim
	if n < few {
		return rows
	}
	centre, about := columnMedians(rows, dim), make([]float32, dim)
	size := make([]float32, n)
	for r := range size {
		for i, v := range rows[r*dim : (r+1)*dim] {
			about[i] = v - centre[i]
		}
		size[r] = largest(about)
	}
	limit := outlierLimit(size)
	if limit == 0 {
		return rows
	}
	var kept []float32
	for r, s := range size {
		if s < limit {
			kept = append(kept, rows[r*dim:(r+1)*dim]...)
		}
	}
	return kept
}

// columnMedians returns the median of each column over at most 9 rows, spread evenly.
func columnMedians(rows []float32, dim int) []float32 {
	n := len(rows) / dim
	some := make([]float32, min(n, 9))
	medians := make([]float32, dim)
	for i := range medians {
		for j := range some {
			some[j] = rows[j*n/len(some)*dim+i]
		}
		slices.Sort(some)
		medians[i] = some[(len(some)-1)/2]
	}
	return medians
}

// outlierLimit returns the size from which on rows of these sizes are outliers, 0 if none is. It
// takes the lower median of the sizes that are not zero.
func outlierLimit(size []float32) float32 {
	var most float32
	for _, s := range size {
		most = max(most, s)
	}
	// If most sizes are within the limit of the largest, there is nothing to sort.
	ordinary, zero := 0, 0
	for _, s := range size {
		if s > most/(1<<outlierOctaves) {
			ordinary++
		} else if s == 0 {
			zero++
		}
	}
	if len(size) < few || 2*ordinary > len(size)-zero {
		return 0
	}
	return float32(math.Ldexp(1, octave(median(size))+outlierOctaves))
}

// median returns the lower median of the sizes that are not zero.
func median(size []float32) float32 {
	sorted := slices.Clone(size)
	slices.Sort(sorted)
	for len(sorted) > 1 && sorted[0] == 0 {
		sorted = sorted[1:]
	}
	return sorted[(len(sorted)-1)/2]
}

// octave returns e with 2^(e-1) <= x < 2^e.
func octave(x float32) int {
	_, e := math.Frexp(float64(x))
	return e
}

// rowSizes returns the largest magnitude of each row of y, [rows, dim].
func rowSizes(y []float32, dim int) []float32 {
	size := make([]float32, len(y)/dim)
	for r := range size {
		size[r] = largest(y[r*dim : (r+1)*dim])
	}
	return size
}

// largest returns the largest magnitude of a row. It compares bit patterns, which order as magnitudes do, NaN
// last.
func largest(row []float32) float32 {
	const sign = 1 << 31
	var a, b, c, d uint32
	for ; len(row) >= 4; row = row[4:] {
		v := (*[4]float32)(row)
		a, b = max(a, math.Float32bits(v[0])&^sign), max(b, math.Float32bits(v[1])&^sign)
		c, d = max(c, math.Float32bits(v[2])&^sign), max(d, math.Float32bits(v[3])&^sign)
	}
	for _, v := range row {
		a = max(a, math.Float32bits(v)&^sign)
	}
	return math.Float32frombits(max(a, b, c, d))
}

// raise returns, for rows of these sizes, by how many octaves the steps of each row of a lane are
// coarser than those of its class, or nil if none is.
func raise(size []float32) []uint8 {
	limit := outlierLimit(size)
	if limit == 0 || !slices.ContainsFunc(size, func(s float32) bool { return s >= limit }) {
		return nil
	}
	typical := octave(limit) - outlierOctaves - 1
	up := make([]uint8, len(size))
	for r, s := range size {
		if s >= limit {
			up[r] = uint8(octave(s) - typical - outlierKeep)
		}
	}
	return up
}

// checkRange refuses rows that no step in float32 can code. size is that of the rows before
// projection.
func checkRange(lane int, size []float32) error {
	for r, s := range size {
		if !(float64(s) < math.Ldexp(1, maxExponent)) {
			return &RangeError{Lane: lane, Row: r, Value: s, Err: fmt.Errorf(
				"a value of %g, an archive codes values below 2^%d: %w", s, maxExponent, quant.ErrRange)}
		}
	}
	return nil
}

// checkSmall refuses a lane whose components are too small for any step. size is that of its rows.
func checkSmall(lane int, size []float32) error {
	if len(size) == 0 {
		return nil
	}
	m := median(size)
	if m == 0 || octave(m) > minExponent {
		return nil
	}
	return &RangeError{Lane: lane, Row: slices.Index(size, m), Value: m, Err: fmt.Errorf(
		"rows that differ by %g only, an archive codes differences from 2^%d on: %w", m, minExponent, quant.ErrRange)}
}
