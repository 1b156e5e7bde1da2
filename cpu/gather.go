// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Gather packs rows of packed sides into new ones; see backend.Backend. Rows are copied, so that the
// reference is fast enough.
func (b *Backend) Gather(ctx context.Context, jobs []backend.GatherJob) error {
	if err := b.open(ctx, backend.OpGather); err != nil {
		return err
	}
	type task struct {
		src []quant.Packed
		dst []byte
	}
	tasks := make([]task, len(jobs))
	for i := range jobs {
		j, t := &jobs[i], &tasks[i]
		t.src = make([]quant.Packed, len(j.Src))
		var err error
		t.dst, _, err = b.checker.Gather(j, func(k int, mem []byte) {
			t.src[k] = quant.Packed{Data: mem, Rows: j.Src[k].Rows, Take: j.Src[k].Take}
		})
		if err != nil {
			return jobError(backend.OpGather, i, err)
		}
	}
	return b.workers.run(ctx, backend.OpGather, len(tasks), func(i int) error {
		j := &jobs[i]
		if err := quant.Gather(tasks[i].dst, j.Dst.Coding, j.Dim, tasks[i].src); err != nil {
			return jobError(backend.OpGather, i, err)
		}
		return nil
	})
}
