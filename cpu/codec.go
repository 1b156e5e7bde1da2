// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"sync/atomic"
	"unsafe"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/args"
	"github.com/kvist-project/kvist/quant"
)

// encodeTask is an EncodeJob with its memory.
type encodeTask struct {
	job             *backend.EncodeJob
	src, index, dst []byte
	stride          int

	// Used for jobs that are divided into parts.
	parts   bool
	rot     *codec.Rotation
	scales  []float32
	refused atomic.Bool // package quant refuses some row
}

// encodePart is a range of rows of a task, or the whole task.
type encodePart struct{ task, from, to int }

// partValues is the smallest number of values in a part of a job: enough work for a goroutine.
const partValues = 1 << 16

// encodeCall is the state of one call of Encode. It is reused.
type encodeCall struct {
	b     *Backend
	tasks []encodeTask
	parts []encodePart
	cut   []int // the tasks that are divided into parts
	again []encodePart

	// Method values, created once.
	doPart, doAgain, doFinish func(i int) error
}

func newEncodeCall(b *Backend) *encodeCall {
	c := &encodeCall{b: b}
	c.doPart, c.doAgain, c.doFinish = c.partOne, c.againOne, c.finishOne
	return c
}

// partOne packs a part, or a whole job.
func (c *encodeCall) partOne(i int) error {
	p := &c.parts[i]
	t := &c.tasks[p.task]
	if t.parts {
		t.part(c.b, p, false)
		return nil
	}
	if err := t.run(c.b); err != nil {
		return jobError(backend.OpEncode, p.task, err)
	}
	return nil
}

// finishOne completes a job whose parts are packed.
func (c *encodeCall) finishOne(i int) error {
	t := &c.tasks[c.cut[i]]
	w := c.b.coders.Get().(*coder)
	defer c.b.coders.Put(w)
	if !t.refused.Load() && w.PutScales(t.dst, t.job.Dst.Coding, t.scales, t.rot) {
		return nil
	}
	t.refused.Store(true)
	if err := t.plain(c.b); err != nil {
		return jobError(backend.OpEncode, c.cut[i], err)
	}
	return nil
}

// againOne packs the codes of a u8 part.
func (c *encodeCall) againOne(i int) error {
	p := &c.again[i]
	if t := &c.tasks[p.task]; !t.refused.Load() {
		t.part(c.b, p, true)
	}
	return nil
}

// Encode packs rows; see backend.Backend. Several workers pack the parts of a large job. The bytes
// do not depend on the division.
func (b *Backend) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	turn, err := b.open(ctx, backend.OpEncode)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	c := b.encodes.Get().(*encodeCall)
	defer func() {
		for i := range c.tasks {
			c.tasks[i].drop()
		}
		b.encodes.Put(c)
	}()
	c.tasks = grow(c.tasks, len(jobs))
	c.parts, c.again, c.cut = c.parts[:0], c.again[:0], c.cut[:0]
	for i := range jobs {
		if err := b.encodeTask(&c.tasks[i], &jobs[i]); err != nil {
			return jobError(backend.OpEncode, i, err)
		}
		if err := c.cutTask(i); err != nil {
			return jobError(backend.OpEncode, i, err)
		}
	}
	return c.run(ctx)
}

// run packs all parts, then completes the divided jobs. If such a job fails, it may come before a
// whole job that failed; run returns the error of the first.
func (c *encodeCall) run(ctx context.Context) error {
	w := c.b.workers
	failed := w.run(ctx, backend.OpEncode, len(c.parts), c.doPart)
	if len(c.cut) == 0 || failed != nil && ctx.Err() != nil {
		return failed
	}
	if failed != nil {
		return c.before(failed)
	}
	if err := w.run(ctx, backend.OpEncode, len(c.cut), c.doFinish); err != nil {
		return err
	}
	return w.run(ctx, backend.OpEncode, len(c.again), c.doAgain)
}

// before returns the first error of the divided jobs if that job comes before the one that failed,
// and failed otherwise.
func (c *encodeCall) before(failed error) error {
	var at *backend.JobError
	if !errors.As(failed, &at) {
		return failed
	}
	for i, task := range c.cut {
		if task < at.Job {
			if err := c.finishOne(i); err != nil {
				return err
			}
		}
	}
	return failed
}

func jobError(op backend.Op, job int, err error) error { return args.JobError(op, job, err) }

// encodeTask prepares a task.
func (b *Backend) encodeTask(t *encodeTask, j *backend.EncodeJob) error {
	w, err := b.checker.Encode(j, eachIndex)
	t.job, t.src, t.dst, t.index, t.stride = j, w.SrcMem, w.DstMem, nil, int(w.RowStride)
	t.parts = false
	if w.Indexed {
		t.index = w.IndexMem
	}
	return err
}

// drop clears references to the caller's memory.
func (t *encodeTask) drop() {
	t.job, t.src, t.dst, t.index, t.rot = nil, nil, nil, nil, nil
}

// cutTask divides a large task into parts if several workers can share it.
func (c *encodeCall) cutTask(i int) (err error) {
	t := &c.tasks[i]
	j := t.job
	rows := partRows(j.Dim)
	if !codec.Encodes(j.Dst.Coding) || j.Rows < 2*rows || c.b.workers.n == 1 {
		c.parts = append(c.parts, encodePart{task: i})
		return nil
	}
	t.parts = true
	t.scales = codec.GrowScales(t.scales, j.Rows)
	t.refused.Store(false)
	if t.rot, err = c.b.rotation(j.Dim, j.Dst.Seed); err != nil {
		return err
	}
	for at := 0; at < j.Rows; at += rows {
		p := encodePart{i, at, min(at+rows, j.Rows)}
		c.parts = append(c.parts, p)
		if j.Dst.Coding.Format == quant.U8 {
			c.again = append(c.again, p)
		}
	}
	c.cut = append(c.cut, i)
	return nil
}

// part packs a part. again selects the second pass of u8, which packs the codes after the scales.
func (t *encodeTask) part(b *Backend, p *encodePart, again bool) {
	w := b.coders.Get().(*coder)
	defer b.coders.Put(w)
	w.task, w.kern = t, b.kern
	defer func() { w.task = nil }()
	if again {
		w.EncodeCodes(t.dst, t.scales, t.rot, w.load, p.from, p.to)
		return
	}
	c := t.job.Dst.Coding
	if !t.refused.Load() && !w.EncodeRows(t.dst, c, t.job.Rows, t.scales, t.rot, w.load, p.from, p.to) {
		t.refused.Store(true)
	}
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

func (t *encodeTask) run(b *Backend) error {
	j := t.job
	rowBytes := j.Dim * j.DType.Size()
	if j.Dst.Coding.Format == j.DType.Format() {
		for r := range j.Rows { // copy the bits unchanged
			copy(t.dst[r*rowBytes:(r+1)*rowBytes], t.src[t.row(r)*t.stride:])
		}
		return nil
	}
	if ok, err := t.fast(b); ok || err != nil {
		return err
	}
	return t.plain(b)
}

// plain packs with package quant: codings without a kernel, and refused rows, to return its error.
func (t *encodeTask) plain(b *Backend) error {
	j := t.job
	rowBytes := j.Dim * j.DType.Size()
	x := quant.Rows{Dim: j.Dim, Data: make([]float32, j.Rows*j.Dim)}
	for r := range j.Rows {
		at := t.row(r) * t.stride
		b.kern.Exact(x.Row(r), j.DType.Format(), t.src[at:at+rowBytes], 1, j.Dim, j.Dim)
	}
	return quant.Encode(t.dst, j.Dst.Coding, x, j.Dst.Seed)
}

// fast encodes with kernels. It reports false if the coding has no kernel or package quant refuses
// a row.
func (t *encodeTask) fast(b *Backend) (bool, error) {
	j := t.job
	c := j.Dst.Coding
	if j.Rows == 0 || !codec.Encodes(c) && !c.Format.Exact() {
		return false, nil
	}
	w := b.coders.Get().(*coder)
	defer b.coders.Put(w)
	w.task, w.kern = t, b.kern
	defer func() { w.task = nil }()
	if c.Format.Exact() {
		return w.EncodeExact(t.dst, c.Format, j.Rows, j.Dim, w.load), nil
	}
	rot, err := b.rotation(j.Dim, j.Dst.Seed)
	if err != nil {
		return false, err
	}
	return w.Encode(t.dst, c, j.Rows, rot, w.load), nil
}

// coder is a codec.Worker that loads the rows of a task.
type coder struct {
	*codec.Worker
	kern *attend.Kernels
	task *encodeTask
	load codec.Loader
	tile []float32
}

func newCoder(k *codec.Kernels) *coder {
	c := &coder{Worker: k.NewWorker()}
	c.load = c.loadRows
	return c
}

// loadRows is a codec.Loader.
func (c *coder) loadRows(tile []float32, stride, r0, n int) {
	t := c.task
	dim, f := t.job.Dim, t.job.DType.Format()
	rowBytes := dim * t.job.DType.Size()
	if t.index == nil && t.stride == rowBytes {
		c.kern.Exact(tile, f, t.src[r0*rowBytes:(r0+n)*rowBytes], n, dim, stride)
		return
	}
	for i := range n {
		at := t.row(r0+i) * t.stride
		c.kern.Exact(tile[i*stride:(i+1)*stride], f, t.src[at:at+rowBytes], 1, dim, stride)
	}
}

// maxRotations is the number of cached rotations. A model has few seeds and row lengths.
const maxRotations = 64

// rotation returns the cached rotation of a seed.
func (b *Backend) rotation(dim int, seed uint64) (*codec.Rotation, error) {
	key := rotKey{seed, dim}
	b.mu.Lock()
	r := b.rotations[key]
	b.mu.Unlock()
	if r != nil {
		return r, nil
	}
	r, err := codec.NewRotation(dim, seed)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.rotations) >= maxRotations {
		clear(b.rotations)
	}
	b.rotations[key] = r
	return r, nil
}

// Decode unpacks rows; see backend.Backend. Several workers share a large job.
func (b *Backend) Decode(ctx context.Context, jobs []backend.DecodeJob) error {
	turn, err := b.open(ctx, backend.OpDecode)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	type task struct {
		job, from, to int
		src, dst      []byte
	}
	tasks := make([]task, 0, len(jobs))
	for i := range jobs {
		j := &jobs[i]
		src, dst, err := b.checker.Decode(j)
		if err != nil {
			return jobError(backend.OpDecode, i, err)
		}
		rows := partRows(j.Dim)
		for at := 0; at < j.Rows; at += rows {
			tasks = append(tasks, task{i, at, min(at+rows, j.Rows), src, dst})
		}
	}
	return b.workers.run(ctx, backend.OpDecode, len(tasks), func(i int) error {
		t := &tasks[i]
		if err := b.decode(t.dst, &jobs[t.job], t.src, t.from, t.to); err != nil {
			return jobError(backend.OpDecode, t.job, err)
		}
		return nil
	})
}

// partRows is the number of rows in a part: whole tiles, with at least partValues values.
func partRows(dim int) int {
	return max(1, (partValues+dim*tileRows-1)/(dim*tileRows)) * tileRows
}

// decode unpacks rows [from, to) to little-endian float32 in the original basis.
func (b *Backend) decode(dst []byte, j *backend.DecodeJob, src []byte, from, to int) error {
	c, dim := j.Src.Coding, j.Dim
	var rot *codec.Rotation
	if c.Format.Rotated() {
		var err error
		if rot, err = b.rotation(dim, j.Src.Seed); err != nil {
			return err
		}
	}
	w := b.coders.Get().(*coder)
	defer b.coders.Put(w)
	w.tile = grow(w.tile, tileRows*dim)
	for r := from; r < to; r += tileRows {
		n := min(tileRows, to-r)
		tile := w.tile[:n*dim]
		if rot != nil {
			w.Decode(tile, c, src, j.Rows, rot, r, n)
		} else {
			attend.UnpackScaled(tile, c, src, j.Rows, dim, r, n)
		}
		putFloats(dst[4*r*dim:], tile)
	}
	return nil
}

// putFloats writes little-endian float32.
func putFloats(dst []byte, x []float32) {
	dst = dst[:4*len(x)]
	if littleEndian {
		copy(dst, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x)))
		return
	}
	for i, v := range x {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

// littleEndian reports whether this machine stores float32 as the formats do.
var littleEndian = func() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 1
}()

// Demote recodes packed rows to fewer bits; see backend.Backend.
func (b *Backend) Demote(ctx context.Context, jobs []backend.DemoteJob) error {
	turn, err := b.open(ctx, backend.OpDemote)
	if err != nil {
		return err
	}
	defer b.leave(turn)
	type task struct{ src, dst []byte }
	tasks := make([]task, len(jobs))
	for i := range jobs {
		src, dst, err := b.checker.Demote(&jobs[i])
		if err != nil {
			return jobError(backend.OpDemote, i, err)
		}
		tasks[i] = task{src, dst}
	}
	return b.workers.run(ctx, backend.OpDemote, len(tasks), func(i int) error {
		j := &jobs[i]
		if j.To.Format < j.Src.Coding.Format {
			w := b.coders.Get().(*coder)
			defer b.coders.Put(w)
			if w.Demote(tasks[i].dst, j.To, tasks[i].src, j.Src.Coding, j.Rows, j.Dim) {
				return nil
			}
		}
		err := quant.Demote(tasks[i].dst, j.To, tasks[i].src, j.Src.Coding, j.Rows, j.Dim)
		if err != nil {
			return jobError(backend.OpDemote, i, err)
		}
		return nil
	})
}
