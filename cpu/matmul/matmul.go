// SPDX-License-Identifier: Apache-2.0

package matmul

//go:generate sh generate.sh

import (
	"fmt"
	"math/bits"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/quant"
)

// groupSize is the number of inputs along k that share a scale, in weights and in activations.
const groupSize = 32

// maxWorkers bounds Options.Workers. A larger number is a mistake.
const maxWorkers = 4096

// Options are the options of Open. The zero value means the best instruction set and one worker per
// processor.
type Options struct {
	// ISA is "" (the best this machine has), "generic", "avx2" or "avx512" (F, BW, VL, DQ and
	// VNNI).
	ISA string
	// Workers is the largest number of processors that a call uses, 1 to 4096; 0 means GOMAXPROCS.
	Workers int
}

// Engine multiplies with one instruction set and a bounded number of workers.
type Engine struct {
	kern    *kernels
	workers int
	helpers atomic.Int64 // number of helper goroutines that may still start
	jobs    sync.Pool    // *job
	scratch sync.Pool    // *scratch
}

// Supported returns the instruction sets that Open accepts on this machine, best first. The last is
// always "generic".
func Supported() []string {
	var names []string
	for _, k := range available() {
		names = append(names, k.isa)
	}
	return names
}

// available returns the kernels that this machine can use, best first.
func available() []*kernels {
	return append(native(), genericKernels())
}

// Open returns an Engine. An Engine need not be closed.
//
// Errors: quant.ErrUnsupported for an unknown instruction set, quant.ErrUnavailable for one that
// the machine or the build lacks, quant.ErrShape for an invalid number of workers.
func Open(opts Options) (*Engine, error) {
	if opts.Workers < 0 || opts.Workers > maxWorkers {
		return nil, fmt.Errorf("kvist/matmul: opening engine: %d workers, want 0..%d: %w",
			opts.Workers, maxWorkers, quant.ErrShape)
	}
	e := &Engine{workers: opts.Workers}
	if e.workers == 0 {
		e.workers = runtime.GOMAXPROCS(0)
	}
	e.helpers.Store(int64(e.workers - 1))
	for _, k := range available() {
		if opts.ISA == "" || opts.ISA == k.isa {
			e.kern = k
			break
		}
	}
	if e.kern == nil {
		cause := quant.ErrUnsupported
		switch opts.ISA {
		case "avx2", "avx512":
			cause = quant.ErrUnavailable
		}
		return nil, fmt.Errorf("kvist/matmul: opening engine: instruction set %q, have %s: %w",
			opts.ISA, strings.Join(Supported(), ", "), cause)
	}
	e.jobs.New = func() any { return newJob(e) }
	e.scratch.New = func() any { return newScratch(e.kern) }
	return e, nil
}

// ISA returns the instruction set of the engine: "generic", "avx2" or "avx512".
func (e *Engine) ISA() string { return e.kern.isa }

// Workers returns the largest number of processors that a call uses.
func (e *Engine) Workers() int { return e.workers }

// F32 computes c[m,n] = a[m,k] . b[n,k]^T and overwrites c. All matrices are row-major. c must not
// overlap a or b. It equals
//
//	for i := range m {
//		for j := range n {
//			c[i*n+j] = 0
//			for l := range k {
//				c[i*n+j] += a[i*k+l] * b[j*k+l]
//			}
//		}
//	}
//
// Errors: quant.ErrShape.
func (e *Engine) F32(c, a, b []float32, m, n, k int) error {
	if err := checkProduct("F32", c, a, m, n, k); err != nil {
		return err
	}
	if need, ok := mul(n, k); !ok || len(b) < need {
		return shapeError("F32", "b", len(b), n, k)
	}
	e.product(product{c: c, a: a, b: b, m: m, n: n, k: k, fill: fillF32})
	return nil
}

// Q8Exact computes c[m,n] = a[m,k] . w^T with float32 activations: F32 on the rows of w.
//
// Errors: quant.ErrShape.
func (e *Engine) Q8Exact(c, a []float32, w *Q8Matrix, m int) error {
	if w == nil {
		return nilError("Q8Exact")
	}
	if err := checkProduct("Q8Exact", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w8: w, m: m, n: w.n, k: w.k, fill: fillQ8})
	return nil
}

// Q4Exact computes c[m,n] = a[m,k] . w^T with float32 activations: F32 on the rows of w.
//
// Errors: quant.ErrShape.
func (e *Engine) Q4Exact(c, a []float32, w *Q4Matrix, m int) error {
	if w == nil {
		return nilError("Q4Exact")
	}
	if err := checkProduct("Q4Exact", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w4: w, m: m, n: w.n, k: w.k, fill: fillQ4})
	return nil
}

// Q8 computes c[m,n] = a[m,k] . w^T with activations quantized to int8 per row and group of
// 32; the package comment bounds the error.
//
// Errors: quant.ErrShape.
func (e *Engine) Q8(c, a []float32, w *Q8Matrix, m int) error {
	if w == nil {
		return nilError("Q8")
	}
	if err := checkProduct("Q8", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w8: w, m: m, n: w.n, k: w.k, integer: true})
	return nil
}

// Q4 computes c[m,n] = a[m,k] . w^T with activations quantized to int8 per row and group of
// 32; the package comment bounds the error.
//
// Errors: quant.ErrShape.
func (e *Engine) Q4(c, a []float32, w *Q4Matrix, m int) error {
	if w == nil {
		return nilError("Q4")
	}
	if err := checkProduct("Q4", c, a, m, w.n, w.k); err != nil {
		return err
	}
	e.product(product{c: c, a: a, w4: w, m: m, n: w.n, k: w.k, integer: true})
	return nil
}

// Dot returns the dot product of a and b over the length of the shorter one:
//
//	for i := range min(len(a), len(b)) { sum += a[i] * b[i] }
func (e *Engine) Dot(a, b []float32) float32 {
	n := min(len(a), len(b))
	return e.kern.dot(a[:n], b[:n])
}

// Axpy adds x*src to dst over the length of the shorter one. dst and src must be equal or must not
// overlap.
//
//	for i := range min(len(dst), len(src)) { dst[i] += x * src[i] }
func (e *Engine) Axpy(dst []float32, x float32, src []float32) {
	n := min(len(dst), len(src))
	e.kern.axpy(dst[:n], x, src[:n])
}

// checkProduct checks the operands that all products share.
func checkProduct(op string, c, a []float32, m, n, k int) error {
	if m < 0 || n < 0 || k < 0 {
		return fmt.Errorf("kvist/matmul: %s: m %d, n %d, k %d, want none negative: %w",
			op, m, n, k, quant.ErrShape)
	}
	if need, ok := mul(m, k); !ok || len(a) < need {
		return shapeError(op, "a", len(a), m, k)
	}
	if need, ok := mul(m, n); !ok || len(c) < need {
		return shapeError(op, "c", len(c), m, n)
	}
	return nil
}

func shapeError(op, what string, got, rows, cols int) error {
	return fmt.Errorf("kvist/matmul: %s: %s has %d elements, want %d x %d: %w",
		op, what, got, rows, cols, quant.ErrShape)
}

func nilError(op string) error {
	return fmt.Errorf("kvist/matmul: %s: nil weights: %w", op, quant.ErrShape)
}

// mul multiplies nonnegative sizes and reports whether the product fits an int.
func mul(a, b int) (int, bool) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi != 0 || lo > uint64(maxInt) {
		return 0, false
	}
	return int(lo), true
}

const maxInt = int(^uint(0) >> 1)
