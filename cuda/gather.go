// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// gatherBatch holds the jobs of a call in the form that kvist_gather needs.
type gatherBatch struct {
	jobs  []kernels.GatherJob
	taken []kernels.GatherRow
	bases []uint64 // of all jobs; Bases of a job is the index of its first until it is sent
}

// Gather packs rows of packed sides into new ones; see backend.Backend.
func (b *Backend) Gather(ctx context.Context, jobs []backend.GatherJob) error {
	if err := b.open(ctx, backend.OpGather); err != nil {
		return err
	}
	var batch gatherBatch
	for i := range jobs {
		if err := batch.add(b, &jobs[i]); err != nil {
			return args.JobError(backend.OpGather, i, err)
		}
	}
	if len(batch.taken) > math.MaxInt32 {
		return fmt.Errorf("kvist/cuda: gather: %d rows in one call: %w", len(batch.taken),
			quant.ErrTooLarge)
	}
	if len(batch.taken) == 0 {
		return nil
	}
	if err := cancelled(ctx, backend.OpGather); err != nil {
		return err
	}
	return b.withLane(batch.run)
}

// add checks and adds a job.
func (g *gatherBatch) add(b *Backend, j *backend.GatherJob) error {
	c := j.Dst.Coding
	d := kernels.GatherJob{Bases: uint64(len(g.bases)), Dim: int32(j.Dim), First: int32(len(g.taken)),
		Format: uint8(c.Format), Form: uint8(c.Scale)}
	sources := make([]uint64, len(j.Src))
	dst, rows, err := b.check().Gather(j, func(i int, at uint64) { sources[i] = at })
	if err != nil {
		return err
	}
	d.Dst, d.Rows = dst, int32(rows)
	for i := range j.Src {
		s := &j.Src[i]
		if s.Len() == 0 {
			continue
		}
		if c.Scale == quant.ScaleLog8 {
			tail := int64(c.PackedBytes(s.Rows, j.Dim) - c.ScaleBytes(s.Rows))
			g.bases = append(g.bases, sources[i]+uint64(tail))
			d.NBases++
		}
		for k := range s.Len() {
			row := int32(k)
			if s.Take != nil {
				row = s.Take[k]
			}
			g.taken = append(g.taken, kernels.GatherRow{Side: sources[i], Rows: int32(s.Rows), Row: row})
		}
	}
	if rows > 0 {
		g.jobs = append(g.jobs, d)
	}
	return nil
}

// run sends the jobs and launches the kernel.
func (g *gatherBatch) run(l *lane) error {
	var y layout
	jobs, taken := room[kernels.GatherJob](&y, len(g.jobs)), room[kernels.GatherRow](&y, len(g.taken))
	bases := room[uint64](&y, len(g.bases))
	if err := l.ready(y.size, y.size); err != nil {
		return err
	}
	for i, dst := 0, slice[kernels.GatherJob](l, jobs); i < len(dst); i++ {
		dst[i] = g.jobs[i]
		dst[i].Bases = l.address(bases) + 8*g.jobs[i].Bases
	}
	copy(slice[kernels.GatherRow](l, taken), g.taken)
	copy(slice[uint64](l, bases), g.bases)
	if err := l.send(y.size); err != nil {
		return err
	}
	p := kernels.GatherParams{Jobs: l.address(jobs), Taken: l.address(taken), NJobs: int32(len(g.jobs)),
		Rows: int32(len(g.taken))}
	err := l.timed(func() error {
		return start(l, "kvist_gather", [2]int{(len(g.taken) + blockWarps - 1) / blockWarps, 1},
			blockWarps*warpThreads, 0, p)
	})
	if err := errLater(err, l.wait()); err != nil {
		return err
	}
	return l.tick()
}
