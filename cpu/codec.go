// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"context"
	"encoding/binary"
	"math"
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
}

// encodeCall is one call of Encode, kept for later ones.
type encodeCall struct {
	b     *Backend
	tasks []encodeTask
	doRun func(i int) error // runOne, bound once
}

func newEncodeCall(b *Backend) *encodeCall {
	c := &encodeCall{b: b}
	c.doRun = c.runOne
	return c
}

func (c *encodeCall) runOne(i int) error {
	if err := c.tasks[i].run(c.b); err != nil {
		return jobError(backend.OpEncode, i, err)
	}
	return nil
}

// Encode packs rows, see backend.Backend.
func (b *Backend) Encode(ctx context.Context, jobs []backend.EncodeJob) error {
	if err := b.open(ctx, backend.OpEncode); err != nil {
		return err
	}
	c := b.encodes.Get().(*encodeCall)
	defer func() {
		clear(c.tasks)
		b.encodes.Put(c)
	}()
	c.tasks = grow(c.tasks, len(jobs))
	for i := range jobs {
		t, err := b.encodeTask(&jobs[i])
		if err != nil {
			return jobError(backend.OpEncode, i, err)
		}
		c.tasks[i] = t
	}
	return b.workers.run(ctx, backend.OpEncode, len(jobs), c.doRun)
}

func jobError(op backend.Op, job int, err error) error { return args.JobError(op, job, err) }

func (b *Backend) encodeTask(j *backend.EncodeJob) (encodeTask, error) {
	w, err := b.checker.Encode(j, eachIndex)
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

func (t *encodeTask) run(b *Backend) error {
	j := t.job
	rowBytes := j.Dim * j.DType.Size()
	if j.Dst.Coding.Format == j.DType.Format() {
		for r := range j.Rows { // the same bits, whatever they stand for
			copy(t.dst[r*rowBytes:(r+1)*rowBytes], t.src[t.row(r)*t.stride:])
		}
		return nil
	}
	if ok, err := t.fast(b); ok || err != nil {
		return err
	}
	// Other codings, and rows that package quant refuses: it says why.
	x := quant.Rows{Dim: j.Dim, Data: make([]float32, j.Rows*j.Dim)}
	for r := range j.Rows {
		at := t.row(r) * t.stride
		b.kern.Exact(x.Row(r), j.DType.Format(), t.src[at:at+rowBytes], 1, j.Dim, j.Dim)
	}
	return quant.Encode(t.dst, j.Dst.Coding, x, j.Dst.Seed)
}

// fast encodes with kernels. It reports false for codings that have none, and where package quant
// refuses a row.
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

// maxRotations is how many rotations are kept: a model has few seeds and row lengths.
const maxRotations = 64

// rotation returns the rotation of a seed, kept from call to call.
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

// Decode unpacks rows, see backend.Backend.
func (b *Backend) Decode(ctx context.Context, jobs []backend.DecodeJob) error {
	if err := b.open(ctx, backend.OpDecode); err != nil {
		return err
	}
	type task struct{ src, dst []byte }
	tasks := make([]task, len(jobs))
	for i := range jobs {
		src, dst, err := b.checker.Decode(&jobs[i])
		if err != nil {
			return jobError(backend.OpDecode, i, err)
		}
		tasks[i] = task{src, dst}
	}
	return b.workers.run(ctx, backend.OpDecode, len(tasks), func(i int) error {
		j := &jobs[i]
		if err := b.decode(tasks[i].dst, j, tasks[i].src); err != nil {
			return jobError(backend.OpDecode, i, err)
		}
		return nil
	})
}

// decode unpacks to little-endian float32 in the original basis.
func (b *Backend) decode(dst []byte, j *backend.DecodeJob, src []byte) error {
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
	for r := 0; r < j.Rows; r += tileRows {
		n := min(tileRows, j.Rows-r)
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

// Demote re-codes packed rows to fewer bits, see backend.Backend.
func (b *Backend) Demote(ctx context.Context, jobs []backend.DemoteJob) error {
	if err := b.open(ctx, backend.OpDemote); err != nil {
		return err
	}
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
