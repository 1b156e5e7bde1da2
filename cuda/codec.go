// SPDX-License-Identifier: Apache-2.0

package cuda

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/cuda/internal/driver"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/kernels"
	"github.com/kvist-project/kvist/quant"
)

// codecBatch holds the jobs of a call in the form that the kernels of codec.cu need.
type codecBatch struct {
	jobs    []kernels.CodecJob
	rows    int64
	dim     int  // the largest
	rotated bool // whether some job has row scales
	u8      bool
	copies  []deviceCopy
}

// deviceCopy is a demotion to the same coding.
type deviceCopy struct {
	dst, src driver.DevicePtr
	n        int64
}

// add adds a job. Scales and Status get their addresses later.
func (c *codecBatch) add(j kernels.CodecJob, rows, dim int, coding quant.Coding) {
	j.Rows, j.Dim, j.First = int32(rows), int32(dim), int32(c.rows)
	j.Format, j.Rule, j.Form = uint8(coding.Format), uint8(coding.Rule), uint8(coding.Scale)
	c.rows += int64(rows)
	c.dim = max(c.dim, dim)
	c.rotated = c.rotated || (coding.Format.Rotated() && rows > 0)
	c.u8 = c.u8 || (coding.Format == quant.U8 && rows > 0)
	c.jobs = append(c.jobs, j)
}

// Encode packs rows; see backend.Backend.
func (b *Backend) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	if err := b.open(ctx, backend.OpEncode); err != nil {
		return err
	}
	var batch codecBatch
	for i := range jobs {
		w, err := b.check().Encode(&jobs[i], b.eachIndex)
		if err != nil {
			return args.JobError(backend.OpEncode, i, err)
		}
		batch.add(kernels.CodecJob{Src: w.SrcMem, Dst: w.DstMem, Index: w.IndexMem,
			Seed: w.Dst.Seed, Stride: w.RowStride, DType: uint8(w.DType)}, w.Rows, w.Dim, w.Dst.Coding)
	}
	return b.runCodec(ctx, backend.OpEncode, &batch)
}

// eachIndex downloads the index of a job, to check its range before anything is written.
func (b *Backend) eachIndex(at uint64, rows int, check func(r int, i int32) error) error {
	if rows == 0 {
		return nil
	}
	text := make([]byte, 4*rows)
	err := b.withLane(func(l *lane) error { return l.download(driver.DevicePtr(at), text) })
	if err != nil {
		return err
	}
	for r := range rows {
		if err := check(r, int32(binary.LittleEndian.Uint32(text[4*r:]))); err != nil {
			return err
		}
	}
	return nil
}

// Decode unpacks rows; see backend.Backend.
func (b *Backend) Decode(ctx context.Context, jobs []backend.DecodeJob) error {
	if err := b.open(ctx, backend.OpDecode); err != nil {
		return err
	}
	var batch codecBatch
	for i := range jobs {
		j := &jobs[i]
		src, dst, err := b.check().Decode(j)
		if err != nil {
			return args.JobError(backend.OpDecode, i, err)
		}
		batch.add(kernels.CodecJob{Src: src, Dst: dst, Seed: j.Src.Seed}, j.Rows, j.Dim, j.Src.Coding)
	}
	return b.runCodec(ctx, backend.OpDecode, &batch)
}

// Demote recodes packed rows to fewer bits; see backend.Backend.
func (b *Backend) Demote(ctx context.Context, jobs []backend.DemoteJob) error {
	if err := b.open(ctx, backend.OpDemote); err != nil {
		return err
	}
	var batch codecBatch
	for i := range jobs {
		j := &jobs[i]
		src, dst, err := b.check().Demote(j)
		if err != nil {
			return args.JobError(backend.OpDemote, i, err)
		}
		if j.To == j.Src.Coding {
			if src != dst && j.Dst.Len > 0 {
				batch.copies = append(batch.copies, deviceCopy{driver.DevicePtr(dst),
					driver.DevicePtr(src), j.Dst.Len})
			}
			j.Rows = 0
		}
		batch.add(kernels.CodecJob{Src: src, Dst: dst, From: uint8(j.Src.Coding.Format)}, j.Rows,
			j.Dim, j.To)
	}
	return b.runCodec(ctx, backend.OpDemote, &batch)
}

// A warp processes a row. As many warps as shared memory allows form a thread block, at most
// blockWarps.
const (
	warpThreads    = 32
	blockWarps     = 4
	sharedPerBlock = 48 << 10 // available on every device by default
)

// runCodec launches the kernels of a batch and reports the first job that failed.
func (b *Backend) runCodec(ctx context.Context, op backend.Op, c *codecBatch) error {
	if c.rows > math.MaxInt32 {
		return fmt.Errorf("kvist/cuda: %s: %d rows in one call: %w", op, c.rows, quant.ErrTooLarge)
	}
	if c.rows == 0 && len(c.copies) == 0 {
		return nil
	}
	status := make([]uint32, 2*len(c.jobs))
	err := b.withLane(func(l *lane) error {
		for _, x := range c.copies {
			if err := b.dev.api.CopyOnDevice(x.dst, x.src, x.n, l.stream); err != nil {
				return err
			}
		}
		if c.rows > 0 {
			return c.run(ctx, l, op, status)
		}
		return l.wait()
	})
	if err != nil {
		return err
	}
	for i := range c.jobs {
		row, what := status[2*i], "a value that is not finite, or too large"
		if row == kernels.StatusClean {
			row, what = status[2*i+1], "the row scale is too large"
		}
		if row != kernels.StatusClean && c.rows > 0 {
			return &backend.JobError{Op: op, Job: i, Row: int(row), Err: fmt.Errorf("%s for %s: %w",
				what, quant.Coding{Format: quant.Format(c.jobs[i].Format),
					Scale: quant.ScaleForm(c.jobs[i].Form)}, quant.ErrRange)}
		}
	}
	return nil
}

func (c *codecBatch) run(ctx context.Context, l *lane, op backend.Op, status []uint32) error {
	var y layout
	jobs, state := room[kernels.CodecJob](&y, len(c.jobs)), room[uint32](&y, len(status))
	staged := y.size
	scales := room[float32](&y, int(c.rows))
	if err := l.ready(staged, y.size); err != nil {
		return err
	}
	for i := range c.jobs {
		j := &c.jobs[i]
		j.Status = l.address(state) + 8*uint64(i)
		j.Scales = l.address(scales) + 4*uint64(j.First)
	}
	copy(slice[kernels.CodecJob](l, jobs), c.jobs)
	for i, s := 0, slice[uint32](l, state); i < len(s); i++ {
		s[i] = kernels.StatusClean
	}
	if err := l.send(staged); err != nil {
		return err
	}
	err := l.timed(func() error { return c.launch(ctx, l, op, l.address(jobs)) })
	if err != nil {
		return errLater(err, l.wait())
	}
	if err := l.fetch(state.at, state.n); err != nil {
		return errLater(err, l.wait())
	}
	err = l.wait()
	copy(status, slice[uint32](l, state))
	return errors.Join(err, l.tick())
}

// errLater returns the first of two errors, because the second is a consequence of it.
func errLater(first, then error) error {
	if first != nil {
		return first
	}
	return then
}

// launch launches the kernels of op.
func (c *codecBatch) launch(ctx context.Context, l *lane, op backend.Op, jobs uint64) error {
	floats := 2 * c.dim // a row and its workspace
	warps := min(blockWarps, max(1, sharedPerBlock/(4*floats)))
	p := kernels.CodecParams{Jobs: jobs, NJobs: int32(len(c.jobs)), Rows: int32(c.rows),
		Shared: int32(floats)}
	grid := [2]int{(int(c.rows) + warps - 1) / warps, 1}
	rows := func(kernel string) error {
		if err := cancelled(ctx, op); err != nil {
			return err
		}
		return start(l, kernel, grid, warps*warpThreads, warps*floats*4, p)
	}
	scales := func() error {
		return start(l, "kvist_scales", [2]int{len(c.jobs), 1}, blockWarps*warpThreads, 16, p)
	}
	switch op {
	case backend.OpDecode:
		return rows("kvist_decode")
	case backend.OpDemote:
		if err := rows("kvist_demote"); err != nil {
			return err
		}
		return scales()
	}
	if err := rows("kvist_encode"); err != nil || !c.rotated {
		return err
	}
	if err := scales(); err != nil || !c.u8 {
		return err
	}
	p.Phase = 1
	return rows("kvist_encode")
}
