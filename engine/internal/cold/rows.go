// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// ReadSegment reads the rows of a segment that a later query can see.
func ReadSegment(in *input.Data, l *input.Layer, s int) (*archive.Segment, error) {
	first, n := in.SeenSpan(l, s)
	return readRows(in, l, first, n, 1, nil)
}

// ReadWhole reads all rows of a segment.
func ReadWhole(in *input.Data, l *input.Layer, s int) (*archive.Segment, error) {
	first, n := l.Span(s)
	return readRows(in, l, first, n, 1, nil)
}

// readRows reads rows of the tokens [first, first+n) of a layer: two of every 2*every. All of them
// go to room where it is large enough.
func readRows(in *input.Data, l *input.Layer, first, n, every int, room []float32) (*archive.Segment, error) {
	seg := &archive.Segment{Layer: l.Number, First: int64(first), Pos: make([]int64, n)}
	if in.KV {
		seg.First += in.First
		if err := in.Positions(first, seg.Pos); err != nil {
			return nil, err
		}
	} else {
		for i := range seg.Pos {
			seg.Pos[i] = int64(first + i)
		}
	}
	seg.Pos = everyPair(seg.Pos, 1, every)
	seg.Dims = []int{l.K.Dim()}
	if l.HasV {
		seg.Dims = append(seg.Dims, l.V.Dim())
	}
	for h := range l.Heads {
		for _, t := range []input.Tensor{l.K, l.V}[:len(seg.Dims)] {
			var into []float32
			if size := n * t.Dim(); size <= len(room) {
				into, room = room[:size:size], room[size:]
			}
			x, err := readSome(in, t, h, first, n, every, into)
			if err != nil {
				return nil, err
			}
			seg.Rows = append(seg.Rows, x)
		}
		c := make([]uint8, len(seg.Pos))
		for t := range c {
			c[t] = midClass
		}
		seg.Class = append(seg.Class, c)
	}
	seg.Step8 = make([]int, len(seg.Rows))
	return seg, nil
}

// readSome reads two rows of every 2*every of a head, to x where it is not nil and all are read.
func readSome(in *input.Data, t input.Tensor, head, first, n, every int, x []float32) ([]float32, error) {
	if every == 1 {
		if x == nil {
			x = make([]float32, n*t.Dim())
		}
		return x, t.ReadF32(head, first, n, x)
	}
	raw := make([]byte, n*t.RowBytes())
	if err := t.Read(head, first, n, raw); err != nil {
		return nil, err
	}
	raw = everyPair(raw, t.RowBytes(), every)
	some := quant.Rows{Dim: t.Dim(), Data: make([]float32, len(raw)/t.RowBytes()*t.Dim())}
	return some.Data, input.Decode(some, t, raw)
}

// everyPair keeps two rows of every 2*every, in place: those in the middle, because the first tokens,
// whose steps are much finer, stand for no others.
func everyPair[T any](rows []T, size, every int) []T {
	if every == 1 {
		return rows
	}
	kept := rows[:0]
	for t := 0; t*size < len(rows); t++ {
		if t/2%every == every/2 {
			kept = append(kept, rows[t*size:(t+1)*size]...)
		}
	}
	return kept
}

// laneTensor returns the tensor that lane i of a layer's records holds rows of.
func laneTensor(l *input.Layer, i int) input.Tensor {
	if l.HasV && i%2 == 1 {
		return l.V
	}
	return l.K
}

// laneRow names row r of those that readRows read of lane i from token first on.
func laneRow(l *input.Layer, i, first, every, r int) string {
	head := i
	if l.HasV {
		head = i / 2
	}
	return fmt.Sprintf("%s head %d token %d", laneTensor(l, i).Name(), head, first+2*(r/2*every+every/2)+r%2)
}
