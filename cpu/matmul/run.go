// SPDX-License-Identifier: Apache-2.0

package matmul

import (
	"sync"
	"sync/atomic"
)

const (
	// kBlock is the number of inputs in one pass of the float kernels, a multiple of 32. A strip of
	// 32 outputs is then 48 KiB and stays in or near the first-level cache.
	kBlock = 384
	// matrixBlock takes the place of kBlock for a Matrix: inputs that share a scale stay together.
	matrixBlock = 256
	// serialWork is the number of multiplications below which starting a helper costs more than it
	// saves.
	serialWork = 1 << 17
	// tasksPerWorker divides work more finely than the workers, so that they finish together.
	tasksPerWorker = 4
	// minRows is the smallest number of rows for which expanding a strip of weights again pays.
	minRows = 48
	// maxRowRows is the largest number of rows to multiply one by one with compressed weights.
	maxRowRows = 2
)

// fillKind is the source of the float kernels' weights.
type fillKind uint8

const (
	fillF32 fillKind = iota
	fillQ8
	fillQ4
	fillMatrix
)

// product is one call: its checked operands.
type product struct {
	c, a, b []float32
	w8      *Q8Matrix
	w4      *Q4Matrix
	w       *Matrix
	m, n, k int
	fill    fillKind
	integer bool
}

// compressed reports whether the weights are codes that row8 or row4 reads.
func (p product) compressed() bool {
	return p.fill == fillQ8 || p.fill == fillQ4 || p.fill == fillMatrix && p.w.plain()
}

// job is a running product. Jobs are reused and keep their activation buffers.
type job struct {
	product
	e     *Engine
	do    func(j *job, task int, s *scratch)
	tasks int
	next  atomic.Int64
	wg    sync.WaitGroup
	help  func() // the body of helpers, created once so that starting one does not allocate

	strips, stripCols int // outputs are divided into strips of stripCols
	parts, partRows   int // rows are divided into parts of partRows

	codes      []int8
	scale, sum []float32
	bias       []int32
	halfSum    []float32
	halfBias   []int32
}

// scratch is the scratch memory of one worker.
type scratch struct {
	b []float32 // strip of expanded weights, cols panels [kBlock][16]
	c []float32 // a tile that extends beyond the outputs

	codes        []uint8   // of a panel of a Matrix
	scales, mins []float32 // of it
}

func newJob(e *Engine) *job {
	j := &job{e: e}
	j.help = func() {
		j.drain()
		j.e.helpers.Add(1)
		j.wg.Done()
	}
	return j
}

func newScratch(k *kernels) *scratch {
	rows := max(k.tiles[0], k.itiles[0])
	return &scratch{
		b: make([]float32, k.cols*panelWidth*kBlock),
		c: make([]float32, rows*k.cols*panelWidth),
	}
}

// product runs p, which has been checked.
func (e *Engine) product(p product) {
	if p.m == 0 || p.n == 0 {
		return
	}
	if p.k == 0 {
		clear(p.c[:p.m*p.n])
		return
	}
	j := e.jobs.Get().(*job)
	j.product = p
	if p.integer {
		j.grow()
		j.cut(panelWidth, e.kern.itiles[0])
		// Rows are quantized in units of the largest tile, so that a tile belongs to one unit.
		j.run((p.m+e.kern.itiles[0]-1)/e.kern.itiles[0], p.m*p.k/4, quantizeTask)
		j.run(j.strips*j.parts, p.m*p.n*p.k, integerTask)
	} else {
		if p.compressed() && p.m <= maxRowRows && e.kern.row4 != nil {
			j.cut(panelWidth*rowPanels, 1)
			j.run(j.strips, p.m*p.n*p.k, rowTask)
			j.release()
			return
		}
		j.cut(panelWidth*e.kern.cols, e.kern.tiles[0])
		j.run(j.strips*j.parts, p.m*p.n*p.k, floatTask)
	}
	j.release()
}

// release returns the job to the pool without references to the caller's memory.
func (j *job) release() {
	j.product = product{}
	j.e.jobs.Put(j)
}

// cut divides the product into strips of outputs and, if these are too few for the workers, parts
// of rows. unit is the smallest width of a strip, rows the kernel's tile.
func (j *job) cut(unit, rows int) {
	want := j.e.workers * tasksPerWorker
	if j.e.workers == 1 {
		want = 1
	}
	units := (j.n + unit - 1) / unit
	j.stripCols = unit
	if j.integer { // consecutive panels: long reads of memory
		j.stripCols = unit * max(1, units/want)
	}
	j.strips = (j.n + j.stripCols - 1) / j.stripCols
	j.parts, j.partRows = 1, j.m
	if j.strips < want {
		parts := min((want+j.strips-1)/j.strips, j.m/minRows)
		if parts > 1 {
			each := (j.m + parts - 1) / parts
			j.partRows = (each + rows - 1) / rows * rows
			j.parts = (j.m + j.partRows - 1) / j.partRows
		}
	}
}

// run executes tasks, with helpers if the work (in multiplications) is large enough.
func (j *job) run(tasks, work int, do func(*job, int, *scratch)) {
	j.do, j.tasks = do, tasks
	j.next.Store(0)
	if work >= serialWork {
		for range min(j.e.workers, tasks) - 1 {
			if j.e.helpers.Add(-1) < 0 { // other calls use all of them
				j.e.helpers.Add(1)
				break
			}
			j.wg.Add(1)
			go j.help()
		}
	}
	j.drain()
	j.wg.Wait()
}

// drain takes tasks until none are left.
func (j *job) drain() {
	s := j.e.scratch.Get().(*scratch)
	for {
		t := int(j.next.Add(1)) - 1
		if t >= j.tasks {
			break
		}
		j.do(j, t, s)
	}
	j.e.scratch.Put(s)
}

// floatTask computes one strip of outputs for one part of the rows, in float32.
func floatTask(j *job, task int, s *scratch) {
	row := task / j.strips * j.partRows
	j.strip(task%j.strips*j.stripCols, row, min(row+j.partRows, j.m), s)
}

// strip computes rows [row, last) of the outputs of one tile, from first on.
func (j *job) strip(first, row, last int, s *scratch) {
	kern := j.e.kern
	width := kern.cols * panelWidth
	cols := min(width, j.n-first)
	block := kBlock
	if j.fill == fillMatrix {
		block = matrixBlock
	}
	for k0 := 0; k0 < j.k; k0 += block {
		kc := min(block, j.k-k0)
		j.expand(s, first, k0, kc)
		for r := row; r < last; {
			rows := tileRows(kern.tiles, last-r)
			c, a := j.c[r*j.n+first:], j.a[r*j.k+k0:]
			if cols == width {
				kern.f32(rows, c, j.n, a, j.k, s.b, kc, k0 > 0)
			} else {
				if k0 > 0 {
					copyTile(s.c, width, c, j.n, rows, cols)
				}
				kern.f32(rows, s.c, width, a, j.k, s.b, kc, k0 > 0)
				copyTile(c, j.n, s.c, width, rows, cols)
			}
			r += rows
		}
	}
}

// rowTask computes one strip of rowPanels panels row by row.
func rowTask(j *job, task int, s *scratch) {
	kern := j.e.kern
	first := task * j.stripCols
	if first+j.stripCols > j.n {
		for ; first < j.n; first += kern.cols * panelWidth {
			j.strip(first, 0, j.m, s)
		}
		return
	}
	if j.w != nil {
		j.w.rowPanels(kern, s, j.c, j.a, first, j.m)
		return
	}
	groups := j.k / groupSize
	lo := first / panelWidth * groups
	hi := lo + rowPanels*groups
	for r := range j.m {
		c, a := j.c[r*j.n+first:], j.a[r*j.k:(r+1)*j.k]
		if w := j.w8; w != nil {
			kern.row8(c, w.codes[lo*panelBytes8:hi*panelBytes8],
				w.scales[lo*panelWidth:hi*panelWidth], a, groups)
			continue
		}
		w := j.w4
		kern.row4(c, w.codes[lo*panelBytes4:hi*panelBytes4],
			w.scales[lo*panelWidth:hi*panelWidth], w.mins[lo*panelWidth:hi*panelWidth], a, groups)
	}
}

// expand writes inputs [k0, k0+kc) of the strip that starts at output first, as panels of float32.
func (j *job) expand(s *scratch, first, k0, kc int) {
	kern := j.e.kern
	for p := range kern.cols {
		panel := s.b[p*panelWidth*kc : (p+1)*panelWidth*kc]
		at := first + p*panelWidth
		if at >= j.n {
			clear(panel)
			continue
		}
		groups := j.k / groupSize
		g := at/panelWidth*groups + k0/groupSize // index of the panel's first group
		n := kc / groupSize
		switch j.fill {
		case fillF32:
			kern.pack(panel, j.b[at*j.k+k0:], j.k, min(panelWidth, j.n-at), kc)
		case fillQ8:
			kern.expand8(panel, j.w8.codes[g*panelBytes8:(g+n)*panelBytes8],
				j.w8.scales[g*panelWidth:(g+n)*panelWidth], n)
		case fillQ4:
			kern.expand4(panel, j.w4.codes[g*panelBytes4:(g+n)*panelBytes4],
				j.w4.scales[g*panelWidth:(g+n)*panelWidth],
				j.w4.mins[g*panelWidth:(g+n)*panelWidth], n)
		case fillMatrix:
			j.w.expand(kern, panel, j.w.panel(kern, s, at, k0, kc))
		}
	}
}

// copyTile copies rows x cols values between matrices with row distances ldd and lds.
func copyTile(dst []float32, ldd int, src []float32, lds, rows, cols int) {
	for r := range rows {
		copy(dst[r*ldd:r*ldd+cols], src[r*lds:r*lds+cols])
	}
}

// grow makes room for the quantized activations.
func (j *job) grow() {
	if n := j.m * j.k; cap(j.codes) < n {
		j.codes = make([]int8, n)
		j.scale = make([]float32, n/groupSize)
		j.sum = make([]float32, n/groupSize)
		j.bias = make([]int32, n/groupSize)
	}
	if n := 2 * j.m * j.k / groupSize; j.halves() && cap(j.halfBias) < n {
		j.halfSum, j.halfBias = make([]float32, n), make([]int32, n)
	}
}

// halves reports whether the product needs sums over 16 inputs.
func (j *job) halves() bool { return j.w != nil && j.w.form.Step < groupSize }

// tile returns the tile of rows r to r+rows-1.
func (j *job) tile(r, rows int) tile {
	g := j.k / groupSize
	lo, hi := r*g, (r+rows)*g
	t := tile{rows: rows, groups: g, codes: j.codes[lo*groupSize : hi*groupSize],
		scale: j.scale[lo:hi], sum: j.sum[lo:hi], bias: j.bias[lo:hi]}
	if j.halves() {
		t.halfSum, t.halfBias = j.halfSum[2*lo:2*hi], j.halfBias[2*lo:2*hi]
	}
	return t
}

// quantizeTask quantizes the rows of one unit of the largest tile.
func quantizeTask(j *job, task int, _ *scratch) {
	kern := j.e.kern
	unit := kern.itiles[0]
	r, last := task*unit, min((task+1)*unit, j.m)
	for r < last {
		rows := tileRows(kern.itiles, last-r)
		t := j.tile(r, rows)
		for i := range rows {
			kern.quantize(t, i, j.a[(r+i)*j.k:(r+i+1)*j.k])
			if j.halves() {
				kern.halves(t, i)
			}
		}
		r += rows
	}
}

// integerTask computes one strip of outputs for one part of the rows. Parts start at multiples of
// the largest tile, so that its tiles are those of quantizeTask.
func integerTask(j *job, task int, s *scratch) {
	first := task % j.strips * j.stripCols
	last := min(first+j.stripCols, j.n)
	row := task / j.strips * j.partRows
	end := min(row+j.partRows, j.m)
	for at := first; at < last; at += panelWidth {
		cols := min(panelWidth, j.n-at)
		if j.w != nil && j.m == 1 {
			j.row(at, cols, s)
			continue
		}
		var p panel
		if j.w != nil {
			p = j.w.panel(j.e.kern, s, at, 0, j.k)
		}
		for r := row; r < end; {
			t := j.tile(r, tileRows(j.e.kern.itiles, end-r))
			c := j.c[r*j.n+at:]
			if cols == panelWidth {
				j.multiply(c, j.n, at, p, t)
			} else {
				j.multiply(s.c, panelWidth, at, p, t)
				copyTile(c, j.n, s.c, panelWidth, t.rows, cols)
			}
			r += t.rows
		}
	}
}

// row computes cols outputs from at on of one row of activations and a Matrix.
func (j *job) row(at, cols int, s *scratch) {
	c, t := j.c[at:], j.tile(0, 1)
	if cols == panelWidth {
		j.w.multiplyRow(j.e.kern, s, c, at, t)
		return
	}
	j.w.multiplyRow(j.e.kern, s, s.c, at, t)
	copy(c[:cols], s.c)
}

// multiply computes one tile for the panel that starts at output at; p is that panel of a Matrix.
func (j *job) multiply(c []float32, ldc, at int, p panel, t tile) {
	if j.w != nil {
		j.w.multiply(j.e.kern, c, ldc, p, t)
		return
	}
	lo, hi := at/panelWidth*t.groups, (at/panelWidth+1)*t.groups
	if w := j.w8; w != nil {
		j.e.kern.q8(c, ldc, w.codes[lo*panelBytes8:hi*panelBytes8],
			w.scales[lo*panelWidth:hi*panelWidth], t)
		return
	}
	w := j.w4
	j.e.kern.q4(c, ldc, w.codes[lo*panelBytes4:hi*panelBytes4],
		w.scales[lo*panelWidth:hi*panelWidth], w.mins[lo*panelWidth:hi*panelWidth], t)
}
