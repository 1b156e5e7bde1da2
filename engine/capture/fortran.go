// SPDX-License-Identifier: Apache-2.0

package capture

import "slices"

const (
	// gatherGap is the largest gap between two wanted elements that is read instead of skipped.
	gatherGap = 4096
	// gatherBytes is the number of bytes of an array in Fortran order that are converted at a time.
	// Neighbours in the file are far apart in a row, so many rows take hardly more reads than one.
	gatherBytes = 1 << 22
)

// gather reads elements of an array in Fortran order, from number first on in C order. It reads
// whole rows over the last dim at once if the range contains any.
func (l *layout) gather(f *file, t *TensorInfo, first int64, dst []byte) error {
	size, dim := t.elementSize(), t.Shape[len(t.Shape)-1]
	for len(dst) > 0 {
		n := min(dim-first%dim, int64(len(dst))/size) // to the end of a row
		rows := int64(1)
		if n == dim {
			rows = int64(len(dst)) / size / dim
			n *= rows
		}
		if err := l.gatherRows(f, t, first, rows, dst[:n*size]); err != nil {
			return err
		}
		first, dst = first+n, dst[n*size:]
	}
	return nil
}

// gatherRows reads rows over the last dim, or a part of one row, from element first on. The last
// dim runs slowest in the file, so each of its values has a slab that holds one value of every row,
// in file order. The wanted rows are located once and read from one slab after another.
func (l *layout) gatherRows(f *file, t *TensorInfo, first, rows int64, dst []byte) error {
	size, last := t.elementSize(), len(t.Shape)-1
	dim := t.Shape[last]
	slab := int64(1)
	for _, d := range t.Shape[:last] {
		slab *= d
	}
	if slab == 1 { // one row: its values follow each other
		return l.bytes(f, t, first*size, dst)
	}
	places := slabPlaces(t.Shape[:last], first/dim, rows)
	buf := f.scratch.Get().(*[]byte)
	defer f.scratch.Put(buf)
	columns := int64(len(dst)) / size / rows
	for j := range columns {
		base := (first%dim + j) * slab
		for at := 0; at < len(places); {
			from := places[at].at
			end, to := at+1, from+1
			for ; end < len(places); end++ {
				next := places[end].at
				if (next-to)*size > gatherGap || (next+1-from)*size > scratchBytes {
					break
				}
				to = next + 1
			}
			run := (*buf)[:(to-from)*size]
			if err := l.bytes(f, t, (base+from)*size, run); err != nil {
				return err
			}
			for _, p := range places[at:end] {
				i, k := (p.row*columns+j)*size, (p.at-from)*size
				copy(dst[i:i+size], run[k:k+size])
			}
			at = end
		}
	}
	return nil
}

// place is the position of a row in its slab. row counts from the first wanted row.
type place struct{ at, row int64 }

// slabPlaces locates rows from number first on, in C order, over the dims of a slab, and sorts them
// by file order.
func slabPlaces(shape []int64, first, rows int64) []place {
	index, stride := make([]int64, len(shape)), make([]int64, len(shape))
	at, step := int64(0), int64(1)
	for i, d := range shape {
		stride[i] = step
		step *= d
	}
	for i := len(shape) - 1; i >= 0; i-- {
		index[i] = first % shape[i]
		first /= shape[i]
		at += index[i] * stride[i]
	}
	places := make([]place, rows)
	for i := range places {
		places[i] = place{at, int64(i)}
		for d := len(index) - 1; d >= 0; d-- {
			index[d]++
			at += stride[d]
			if index[d] < shape[d] {
				break
			}
			at -= index[d] * stride[d]
			index[d] = 0
		}
	}
	if len(shape) > 1 { // rows of a matrix are in order
		slices.SortFunc(places, func(a, b place) int { return int(min(max(a.at-b.at, -1), 1)) })
	}
	return places
}
