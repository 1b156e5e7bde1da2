// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// MeanBytes returns the bytes of a stored mean: dim values in binary16.
func MeanBytes(dim int) int { return 2 * dim }

// maxMean is the largest magnitude of a stored mean. A larger mean is stored as this, which is
// still a vector that may be taken off rows.
const maxMean = 65504

// PutMean stores the mean of rows, each component in binary16. Sums run in float64 over ascending
// rows. The mean of no rows is zero.
//
// Any vector may be taken off rows that are coded. What is stored is what Center takes off, so the
// rounding to binary16 loses nothing.
//
// Errors: ErrShape unless dst has MeanBytes(x.Dim) bytes; *RowError wrapping ErrRange for a row
// with a NaN or an infinity. Nothing is written then.
func PutMean(dst []byte, x quant.Rows) error {
	if err := x.Validate(); err != nil {
		return err
	}
	sums := make([]float64, x.Dim)
	for r := range x.Len() {
		for i, v := range x.Row(r) {
			if !finite(v) {
				return &quant.RowError{Row: r, Err: fmt.Errorf("value %d is %g, which has no mean: %w", i, v,
					quant.ErrRange)}
			}
			sums[i] += float64(v)
		}
	}
	return PutMeanOfSums(dst, sums, x.Len())
}

// PutMeanOfSums is PutMean of n rows of which the sums by component are known, [dim].
//
// Errors: ErrShape unless dst has MeanBytes(len(sums)) bytes.
func PutMeanOfSums(dst []byte, sums []float64, n int) error {
	if len(dst) != MeanBytes(len(sums)) {
		return fmt.Errorf("kvist/frame: mean of rows of %d values: room for %d bytes, want %d: %w",
			len(sums), len(dst), MeanBytes(len(sums)), quant.ErrShape)
	}
	for i, s := range sums {
		m := min(max(float32(s/float64(max(1, n))), -maxMean), maxMean)
		binary.LittleEndian.PutUint16(dst[2*i:], quant.F32ToF16(m))
	}
	return nil
}

// Mean writes the values of a stored mean to dst, [dim].
//
// Errors: ErrShape unless mean has MeanBytes(len(dst)) bytes.
func Mean(dst []float32, mean []byte) error {
	if len(mean) != MeanBytes(len(dst)) {
		return fmt.Errorf("kvist/frame: mean of %d values has %d bytes, want %d: %w", len(dst),
			len(mean), MeanBytes(len(dst)), quant.ErrShape)
	}
	for i := range dst {
		dst[i] = quant.F16ToF32(binary.LittleEndian.Uint16(mean[2*i:]))
	}
	return nil
}

// Center writes A (x - mean) for every row x of src to dst: what Encode is given where a block has
// a mean, a metric or both. nil for mean or m leaves that part out. Each difference is rounded to
// float32; Metric.Forward says how the rest is. dst may be src.
//
// Errors: ErrShape; ErrRange as *RowError for a row whose difference or product is beyond float32,
// the rows before it are then written.
func Center(dst, src quant.Rows, mean []byte, m *Metric) error {
	return move(dst, src, mean, m, true)
}

// Uncenter writes A^-1 y + mean for every row y of src to dst: Center undone up to rounding. dst may
// be src.
//
// Errors: as Center.
func Uncenter(dst, src quant.Rows, mean []byte, m *Metric) error {
	return move(dst, src, mean, m, false)
}

func move(dst, src quant.Rows, mean []byte, m *Metric, forward bool) error {
	if err := src.Validate(); err != nil {
		return err
	}
	dim := src.Dim
	if dst.Dim != dim || len(dst.Data) != len(src.Data) || m != nil && m.dim != dim {
		return fmt.Errorf("kvist/frame: center %d values in rows of %d, to %d in rows of %d, the metric"+
			" has %d: %w", len(src.Data), dim, len(dst.Data), dst.Dim, metricDim(m), quant.ErrShape)
	}
	shift := make([]float32, dim)
	if mean != nil {
		if err := Mean(shift, mean); err != nil {
			return err
		}
	}
	tmp := make([]float32, dim)
	for r := range src.Len() {
		x, y := src.Row(r), dst.Row(r)
		moveRow(y, x, tmp, shift, mean != nil, m, forward)
		for i, v := range y {
			if v-v != 0 {
				return &quant.RowError{Row: r, Err: fmt.Errorf("value %d is %g without its mean and in its"+
					" metric: %w", i, v, quant.ErrRange)}
			}
		}
	}
	return nil
}

func moveRow(y, x, tmp, shift []float32, has bool, m *Metric, forward bool) {
	copy(tmp, x)
	if forward && has {
		for i, s := range shift {
			tmp[i] -= s
		}
	}
	switch {
	case m == nil:
		copy(y, tmp)
	case forward:
		m.Forward(y, tmp)
	default:
		m.Backward(y, tmp)
	}
	if !forward && has {
		for i, s := range shift {
			y[i] = float32(y[i] + s)
		}
	}
}

func metricDim(m *Metric) int {
	if m == nil {
		return 0
	}
	return m.dim
}

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }
