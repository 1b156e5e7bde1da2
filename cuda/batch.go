// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// batch is a batch of queries over a view, with what the kernels need of a call.
type batch struct {
	*backend.Queries
	view  *view
	table *table
	// mma and int8: the kernels for tensor cores that the call may use.
	mma, int8 bool
	// variants are the distinct pairs of offset and metric of the listed blocks. turns and metrics
	// hold their values.
	keys     []variantKey
	variants []kernels.Variant
	turns    []float32 // [turns, 2, pairs]
	metrics  []float32
	masses   []float64 // of every entry of every list; nil: not asked for
}

type variantKey struct {
	angles *angles
	metric *frame.Metric
}

func (b *Backend) newBatch(q *backend.Queries, v *view) *batch {
	return &batch{Queries: q, view: v, table: tableOf(v)}
}

// variantOf returns the variant of a form; last is a guess.
func (t *batch) variantOf(f *form, last int32) int32 {
	k := variantKey{f.Own.angles, f.Key.Metric}
	if int(last) < len(t.keys) && t.keys[last] == k {
		return last
	}
	for i := range t.keys {
		if t.keys[i] == k {
			return int32(i)
		}
	}
	v := kernels.Variant{Turn: kernels.NoTurn, Metric: -1}
	if k.angles != nil {
		v.Turn = int32(len(t.turns) / len(*k.angles))
		t.turns = append(t.turns, *k.angles...)
	}
	if m := k.metric; m != nil {
		v.Metric = int32(len(t.metrics))
		if d := m.Diagonal(); d != nil {
			t.metrics = append(t.metrics, d...)
		} else {
			v.Matrix = 1
			t.metrics = append(t.metrics, m.Inverse()...)
		}
	}
	t.keys, t.variants = append(t.keys, k), append(t.variants, v)
	return int32(len(t.keys) - 1)
}

// check returns an error if the memory of a listed block was freed.
func (t *batch) check() error {
	var last *entry
	for _, i := range t.BlockIdx {
		e := t.view.At(int(i))
		if !alive(t.view, e, last) {
			return fmt.Errorf("block %d: a buffer was freed: %w", i, quant.ErrClosed)
		}
		last = e
	}
	return nil
}

// queryRoom is the place of a batch in scratch memory.
type queryRoom struct{ q, pos, variants, turns, metrics section }

func (t *batch) room(y *layout) queryRoom {
	return queryRoom{room[float32](y, len(t.Q)), room[int64](y, len(t.Pos)),
		room[kernels.Variant](y, len(t.variants)), room[float32](y, len(t.turns)),
		room[float32](y, len(t.metrics))}
}

func (t *batch) fill(l *lane, r queryRoom) {
	copy(slice[float32](l, r.q), t.Q)
	copy(slice[int64](l, r.pos), t.Pos)
	copy(slice[kernels.Variant](l, r.variants), t.variants)
	copy(slice[float32](l, r.turns), t.turns)
	copy(slice[float32](l, r.metrics), t.metrics)
}

// descriptors returns the device address of the table's descriptors. table.use is held.
func (t *batch) descriptors() uint64 {
	if t.table.mem == nil {
		return 0
	}
	return uint64(t.table.mem.at)
}

func (t *batch) pairs() int32 { return int32(len(t.table.freqs)) }

func (t *batch) interleaved() int32 {
	if r := t.view.Shape().Rope; r != nil && r.Layout == quant.RopeInterleaved {
		return 1
	}
	return 0
}
