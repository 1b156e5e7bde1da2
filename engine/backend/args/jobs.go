// SPDX-License-Identifier: Apache-2.0

package args

import (
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// EncodeView is an EncodeJob with its memory.
type EncodeView[M any] struct {
	*backend.EncodeJob
	SrcMem, IndexMem, DstMem M
	Indexed                  bool
	RowStride                int64 // bytes between the starts of rows
	SrcRows                  int64 // rows in the source
}

// Encode resolves and checks one job. index calls at with every value of the job's index and
// returns the first error of at.
func (c Checker[M]) Encode(j *backend.EncodeJob,
	index func(m M, rows int, at func(r int, i int32) error) error) (EncodeView[M], error) {
	t := EncodeView[M]{EncodeJob: j}
	var err error
	if t.DstMem, err = c.Side("destination", backend.OpEncode, j.Dst, j.Rows, j.Dim); err != nil {
		return t, err
	}
	elem := j.DType.Size()
	if elem == 0 {
		return t, fmt.Errorf("source: element type %s: %w", j.DType, quant.ErrUnsupported)
	}
	rowBytes := int64(j.Dim * elem)
	t.RowStride = j.Stride
	if t.RowStride == 0 {
		t.RowStride = rowBytes
	}
	if t.RowStride < rowBytes || t.RowStride%int64(elem) != 0 {
		return t, fmt.Errorf("source: stride %d, want a multiple of %d from %d up: %w", t.RowStride,
			elem, rowBytes, quant.ErrShape)
	}
	if t.SrcMem, err = c.Span("source", j.Src, j.Src.Len, int64(elem)); err != nil {
		return t, err
	}
	if j.Src.Len >= rowBytes {
		t.SrcRows = (j.Src.Len-rowBytes)/t.RowStride + 1
	}
	t.RowStride = min(t.RowStride, math.MaxInt) // only one row: the stride is not used
	if Overlap(j.Dst.Data, j.Src) || Overlap(j.Dst.Data, j.Index) {
		return t, fmt.Errorf("destination overlaps the source: %w", quant.ErrShape)
	}
	if Absent(j.Index) {
		if int64(j.Rows) > t.SrcRows {
			return t, fmt.Errorf("source: span of %d bytes has %d rows, want %d: %w", j.Src.Len,
				t.SrcRows, j.Rows, quant.ErrShape)
		}
		return t, nil
	}
	t.Indexed = true
	if t.IndexMem, err = c.Span("index", j.Index, 4*int64(j.Rows), 4); err != nil {
		return t, err
	}
	return t, index(t.IndexMem, j.Rows, func(r int, i int32) error {
		if i < 0 || int64(i) >= t.SrcRows {
			return &quant.RowError{Row: r, Err: fmt.Errorf("index %d of a source of %d rows: %w", i,
				t.SrcRows, quant.ErrShape)}
		}
		return nil
	})
}

// Decode resolves and checks one job.
func (c Checker[M]) Decode(j *backend.DecodeJob) (src, dst M, err error) {
	if src, err = c.Side("source", backend.OpDecode, j.Src, j.Rows, j.Dim); err != nil {
		return src, dst, err
	}
	dst, err = c.Span("destination", j.Dst, 4*int64(j.Rows)*int64(j.Dim), 4)
	if err == nil && Overlap(j.Dst, j.Src.Data) {
		err = fmt.Errorf("destination overlaps the source: %w", quant.ErrShape)
	}
	return src, dst, err
}

// Demote resolves and checks one job.
func (c Checker[M]) Demote(j *backend.DemoteJob) (src, dst M, err error) {
	from := j.Src.Coding
	if src, err = c.Side("source", backend.OpDemote, j.Src, j.Rows, j.Dim); err != nil {
		return src, dst, err
	}
	to := backend.Side{Coding: j.To, Data: j.Dst}
	if dst, err = c.Side("destination", backend.OpDemote, to, j.Rows, j.Dim); err != nil {
		return src, dst, err
	}
	if j.To.Format > from.Format || j.To.Rule != from.Rule || j.To.Scale != from.Scale {
		return src, dst, fmt.Errorf("%s to %s: %w", from, j.To, quant.ErrUnsupported)
	}
	if Overlap(j.Src.Data, j.Dst) && j.Src.Data.Off != j.Dst.Off {
		return src, dst, fmt.Errorf("destination overlaps the source and starts elsewhere: %w",
			quant.ErrShape)
	}
	return src, dst, nil
}

// Gather resolves and checks one job. It calls each with the memory of every source.
func (c Checker[M]) Gather(j *backend.GatherJob, each func(i int, m M)) (dst M, rows int, err error) {
	for i := range j.Src {
		s := &j.Src[i]
		what := fmt.Sprintf("source %d", i)
		m, err := c.Side(what, backend.OpGather, s.Side, s.Rows, j.Dim)
		if err != nil {
			return dst, 0, err
		}
		if s.Side.Coding != j.Dst.Coding || s.Side.Seed != j.Dst.Seed && s.Side.Coding.Format.Rotated() {
			return dst, 0, fmt.Errorf("%s: %s with seed %d, to %s with seed %d: %w", what, s.Side.Coding,
				s.Side.Seed, j.Dst.Coding, j.Dst.Seed, quant.ErrShape)
		}
		for k, r := range s.Take {
			if r < 0 || int(r) >= s.Rows {
				return dst, 0, fmt.Errorf("%s: row %d of %d at place %d: %w", what, r, s.Rows, k,
					quant.ErrShape)
			}
		}
		rows += s.Len()
		each(i, m)
	}
	if dst, err = c.Side("destination", backend.OpGather, j.Dst, rows, j.Dim); err != nil {
		return dst, 0, err
	}
	for i := range j.Src {
		if Overlap(j.Dst.Data, j.Src[i].Side.Data) {
			return dst, 0, fmt.Errorf("destination overlaps source %d: %w", i, quant.ErrShape)
		}
	}
	return dst, rows, nil
}

// JobError wraps err with the job, and with the row if err is a *quant.RowError.
func JobError(op backend.Op, job int, err error) error {
	var row *quant.RowError
	if errors.As(err, &row) {
		return &backend.JobError{Op: op, Job: job, Row: row.Row, Err: row.Err}
	}
	return &backend.JobError{Op: op, Job: job, Row: -1, Err: err}
}
