// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"container/heap"
	"context"
	"fmt"
	"io"
	"math"

	"github.com/kvist-project/kvist/engine/archive"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// Truncated says what Truncate left.
type Truncated struct {
	Bytes        int64
	BitsPerValue float64
	// Streams and Dropped count the streams of components that the file had, and those dropped.
	Streams, Dropped int
}

// Truncate writes a coarser file of at most total bytes: the streams of components are dropped
// whose bytes tell the least. Nothing is decoded or coded again, and neither original nor profile is
// needed. A file made with Config.Chunks has streams to drop.
//
// How much a stream tells follows from its length: at b bits a coefficient the deviation is about
// 2^b steps, and steps are such that a squared step costs the same everywhere.
//
// Errors: quant.ErrBudget where all streams dropped would not do; *container.CorruptError.
func Truncate(ctx context.Context, r *container.Reader, w io.Writer, total int64,
	progress Progress) (*Truncated, error) {
	t := &truncator{r: r, h: r.Header(), keep: map[[2]int][]int{}}
	if err := t.survey(ctx, progress); err != nil {
		return nil, err
	}
	res := &Truncated{Streams: t.streams}
	for over := r.Size() - total; over > 0; {
		if len(t.heap) == 0 {
			return nil, fmt.Errorf("kvist/offline: %d bytes: %d are left with all streams dropped: %w",
				total, total+over, quant.ErrBudget)
		}
		c := heap.Pop(&t.heap).(chunk)
		t.keep[c.record][c.lane] = c.index
		over -= t.shrink(c)
		res.Dropped++
		if c.index > 0 {
			heap.Push(&t.heap, t.at(c.record, c.lane, c.index-1))
		}
	}
	return res, t.write(ctx, w, res)
}

// chunk is the last stream that a lane still has.
type chunk struct {
	record      [2]int // layer, segment
	lane, index int
	bytes       int
	worth       float64 // damage of dropping it, for a byte
}

type chunkHeap []chunk

func (h chunkHeap) Len() int           { return len(h) }
func (h chunkHeap) Less(i, j int) bool { return h[i].less(&h[j]) }
func (h chunkHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *chunkHeap) Push(x any)        { *h = append(*h, x.(chunk)) }
func (h *chunkHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func (c *chunk) less(d *chunk) bool {
	switch {
	case c.worth != d.worth:
		return c.worth < d.worth
	case c.record != d.record:
		return c.record[0] < d.record[0] || c.record[0] == d.record[0] && c.record[1] < d.record[1]
	}
	return c.lane < d.lane
}

type truncator struct {
	r       *container.Reader
	h       *container.Header
	heap    chunkHeap
	keep    map[[2]int][]int   // streams that each lane keeps
	chunks  map[[2]int][][]int // their sizes
	payload map[[2]int]int64   // bytes of the payload as it is
	streams int
}

func (t *truncator) sides() int {
	if t.h.Kind == container.KindRows {
		return 1
	}
	return 2
}

func (t *truncator) survey(ctx context.Context, progress Progress) error {
	t.chunks, t.payload = map[[2]int][][]int{}, map[[2]int]int64{}
	infos := t.r.Records()
	for i, info := range infos {
		progress.say("measuring", int64(i), int64(len(infos)))
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := t.r.ReadRecord(i)
		if err != nil {
			return err
		}
		if rec.Archive == nil || archive.IsLossless(rec.Archive) {
			continue
		}
		key := [2]int{info.Layer, info.Segment}
		sizes, err := archive.ChunkSizes(rec.Archive, t.h.KVHeads()*t.sides())
		if err != nil {
			return err
		}
		t.chunks[key], t.keep[key] = sizes, make([]int, len(sizes))
		t.payload[key] = int64(len(rec.Archive))
		for lane, chunks := range sizes {
			n := 0
			for n < len(chunks) && chunks[n] > 0 {
				n++
			}
			t.keep[key][lane] = n
			t.streams += n
			if n > 0 {
				t.heap = append(t.heap, t.at(key, lane, n-1))
			}
		}
	}
	heap.Init(&t.heap)
	return nil
}

// at prices a stream.
func (t *truncator) at(record [2]int, lane, index int) chunk {
	chunks := t.chunks[record][lane]
	kDim, vDim := t.h.Dims(record[0])
	dim := []int{kDim, vDim}[lane%t.sides()]
	n := float64(t.h.SegmentLen(record[0], record[1])) * float64(dim) / float64(len(chunks))
	bits := 8 * float64(chunks[index]) / n
	return chunk{record: record, lane: lane, index: index, bytes: chunks[index],
		worth: n * (math.Exp2(2*bits) - 0.99) / float64(chunks[index])}
}

// shrink takes a stream out of the bytes of its record and returns by how much the file shrinks,
// padding counted.
func (t *truncator) shrink(c chunk) int64 {
	padded := func(n int64) int64 { return (n + 15) &^ 15 }
	const head = 24 // of a record: padding is counted from its start
	before := padded(head + t.payload[c.record])
	t.payload[c.record] -= int64(c.bytes)
	return before - padded(head+t.payload[c.record])
}

func (t *truncator) write(ctx context.Context, w io.Writer, res *Truncated) error {
	out, err := container.NewWriter(w, t.h)
	if err != nil {
		return err
	}
	infos, err := t.r.Auxes()
	if err != nil {
		return err
	}
	for _, info := range infos {
		a, err := t.r.ReadAux(info.Name)
		if err != nil {
			return err
		}
		if err := out.WriteAux(a); err != nil {
			return err
		}
	}
	for i, info := range t.r.Records() {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := t.r.ReadRecord(i)
		if err != nil {
			return err
		}
		if keep := t.keep[[2]int{info.Layer, info.Segment}]; keep != nil {
			if rec.Archive, err = archive.Truncate(nil, rec.Archive, keep); err != nil {
				return err
			}
		}
		if err := out.WriteRecord(rec); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	res.Bytes, res.BitsPerValue = out.Size(), quant.BitsPerValue(out.Size(), Values(t.h))
	return nil
}

// Values returns the number of values of all rows that a file stands for.
func Values(h *container.Header) (n int64) {
	for i := range h.Stored() {
		k, v := h.Dims(i)
		n += h.LayerTokens(i) * int64(h.KVHeads()) * int64(k+v)
	}
	return n
}
