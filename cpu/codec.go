// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// encodeTask is an EncodeJob with its memory.
type encodeTask struct {
	job             *backend.EncodeJob
	src, index, dst []byte
	stride          int
}

// Encode packs rows, see backend.Backend.
func (b *Backend) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	if err := b.open(ctx, backend.OpEncode); err != nil {
		return err
	}
	tasks := make([]encodeTask, len(jobs))
	for i := range jobs {
		t, err := b.encodeTask(&jobs[i])
		if err != nil {
			return jobError(backend.OpEncode, i, err)
		}
		tasks[i] = t
	}
	return b.workers.run(ctx, backend.OpEncode, len(tasks), func(i int) error {
		if err := tasks[i].run(); err != nil {
			return jobError(backend.OpEncode, i, err)
		}
		return nil
	})
}

func jobError(op backend.Op, job int, err error) error { return args.JobError(op, job, err) }

func (b *Backend) encodeTask(j *backend.EncodeJob) (encodeTask, error) {
	w, err := b.check().Encode(j, eachIndex)
	t := encodeTask{job: j, src: w.SrcMem, dst: w.DstMem, stride: int(w.RowStride)}
	if w.Indexed {
		t.index = w.IndexMem
	}
	return t, err
}

func eachIndex(index []byte, rows int, at func(r int, i int32) error) error {
	t := encodeTask{index: index}
	for r := range rows {
		if err := at(r, int32(t.row(r))); err != nil {
			return err
		}
	}
	return nil
}

// row returns the source row of packed row r.
func (t *encodeTask) row(r int) int {
	if t.index == nil {
		return r
	}
	return int(int32(binary.LittleEndian.Uint32(t.index[4*r:])))
}

func (t *encodeTask) run() error {
	j := t.job
	rowBytes := j.Dim * j.DType.Size()
	if j.Dst.Coding.Format == j.DType.Format() {
		for r := range j.Rows { // the same bits, whatever they stand for
			copy(t.dst[r*rowBytes:(r+1)*rowBytes], t.src[t.row(r)*t.stride:])
		}
		return nil
	}
	x := quant.Rows{Dim: j.Dim, Data: make([]float32, j.Rows*j.Dim)}
	exact := quant.Coding{Format: j.DType.Format()}
	for r := range j.Rows {
		at := t.row(r) * t.stride
		attend.UnpackScaled(x.Row(r), exact, t.src[at:at+rowBytes], 1, j.Dim, 0, 1)
	}
	return quant.Encode(t.dst, j.Dst.Coding, x, j.Dst.Seed)
}

// Decode unpacks rows, see backend.Backend.
func (b *Backend) Decode(ctx context.Context, jobs []backend.DecodeJob) error {
	if err := b.open(ctx, backend.OpDecode); err != nil {
		return err
	}
	type task struct{ src, dst []byte }
	tasks := make([]task, len(jobs))
	for i := range jobs {
		src, dst, err := b.check().Decode(&jobs[i])
		if err != nil {
			return jobError(backend.OpDecode, i, err)
		}
		tasks[i] = task{src, dst}
	}
	return b.workers.run(ctx, backend.OpDecode, len(tasks), func(i int) error {
		j := &jobs[i]
		err := decode(tasks[i].dst, j.Src.Coding, tasks[i].src, j.Rows, j.Dim, j.Src.Seed)
		if err != nil {
			return jobError(backend.OpDecode, i, err)
		}
		return nil
	})
}

// decode unpacks to little-endian float32 in the original basis.
func decode(dst []byte, c quant.Coding, src []byte, rows, dim int, seed uint64) error {
	var rot *quant.Rotation
	if c.Format.Rotated() {
		var err error
		if rot, err = quant.NewRotation(dim, seed); err != nil {
			return err
		}
	}
	tile := make([]float32, tileRows*dim)
	for r := 0; r < rows; r += tileRows {
		n := min(tileRows, rows-r)
		attend.UnpackScaled(tile, c, src, rows, dim, r, n)
		for i := range n {
			if rot != nil {
				rot.Inverse(tile[i*dim : (i+1)*dim])
			}
		}
		out := dst[4*r*dim:]
		for i, v := range tile[:n*dim] {
			binary.LittleEndian.PutUint32(out[4*i:], math.Float32bits(v))
		}
	}
	return nil
}

// Demote re-codes packed rows to fewer bits, see backend.Backend.
func (b *Backend) Demote(ctx context.Context, jobs []backend.DemoteJob) error {
	if err := b.open(ctx, backend.OpDemote); err != nil {
		return err
	}
	type task struct{ src, dst []byte }
	tasks := make([]task, len(jobs))
	for i := range jobs {
		src, dst, err := b.check().Demote(&jobs[i])
		if err != nil {
			return jobError(backend.OpDemote, i, err)
		}
		tasks[i] = task{src, dst}
	}
	return b.workers.run(ctx, backend.OpDemote, len(tasks), func(i int) error {
		j := &jobs[i]
		err := quant.Demote(tasks[i].dst, j.To, tasks[i].src, j.Src.Coding, j.Rows, j.Dim)
		if err != nil {
			return jobError(backend.OpDemote, i, err)
		}
		return nil
	})
}
