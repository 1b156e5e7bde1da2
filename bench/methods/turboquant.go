// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
)

// TurboQuantProd stores K so that its inner products have no bias. It stores TurboQuant-mse at one
// bit less, and of the residual r = x - mse(x) the norm and the signs of S r, with S a Gaussian matrix
// (QJL). A row decodes as mse(x) + sqrt(pi/2)/head_dim |r| S^T sign(S r). V has no inner products with
// queries and is stored as TurboQuant-mse at the full width.
//
// Bytes of a row: K (bits-1)/8 a value, 1/8 a value for the signs, 2 for the norm of x and 2 for
// |r|; V bits/8 a value and 2. Both sides are padded as package quant packs them.
//
// Source: TurboQuant (2025, arXiv 2504.19874), algorithm 2; QJL (2024, arXiv 2406.03482).
// Deviation: the mse stage rotates by a randomised Hadamard transform.
type TurboQuantProd struct {
	Bits int // 2 to 4
}

// Name returns "tqprod3".
func (t TurboQuantProd) Name() string { return "tqprod" + strconv.Itoa(t.Bits) }

// Source names the paper.
func (t TurboQuantProd) Source() string {
	return "TurboQuant-prod for K, -mse for V, arXiv 2504.19874; Hadamard, no dense rotation"
}

// Compress implements Method.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrRange.
func (t TurboQuantProd) Compress(ctx context.Context, c *Context) (*Cache, error) {
	if t.Bits < 2 || t.Bits > 4 {
		return nil, fmt.Errorf("kvist/methods: %s: %d bits, want 2 to 4: %w", t.Name(), t.Bits,
			quant.ErrUnsupported)
	}
	s, err := c.shape(t.Name(), false)
	if err != nil {
		return nil, err
	}
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	if err != nil {
		return nil, fmt.Errorf("kvist/methods: %s: %w", t.Name(), err)
	}
	qjl := newQJL(engine, s.dimK)
	mse := func(bits int) quant.Coding {
		return quant.Coding{Format: quant.TQMSE1 + quant.Format(bits-1)}
	}
	coarse := codingCoder(mse(t.Bits - 1))
	prod := func(dst, src quant.Rows) (int64, error) {
		n, err := coarse(dst, src)
		if err != nil {
			return 0, err
		}
		m, err := qjl.addResidual(dst, src)
		return n + m, err
	}
	return eachHead(ctx, t, c, 0, 0, prod, codingCoder(mse(t.Bits)))
}

// qjl is the one-bit quantized Johnson-Lindenstrauss transform of rows of one dim.
type qjl struct {
	engine   *matmul.Engine
	dim      int
	s, trans []float32 // [dim, dim] standard Gaussians, and transposed
}

func newQJL(engine *matmul.Engine, dim int) *qjl {
	q := &qjl{engine: engine, dim: dim,
		s: make([]float32, dim*dim), trans: make([]float32, dim*dim)}
	rng := rand.New(rand.NewPCG(rotationSeed, uint64(dim)))
	for i := range q.s {
		q.s[i] = float32(rng.NormFloat64())
		q.trans[i%dim*dim+i/dim] = q.s[i]
	}
	return q
}

// addResidual codes src - dst and adds the decoded estimate to dst. It returns the stored bytes.
func (q *qjl) addResidual(dst, src quant.Rows) (int64, error) {
	rows, dim := src.Len(), q.dim
	residual, signs := make([]float32, rows*dim), make([]float32, rows*dim)
	for i, x := range src.Data {
		residual[i] = x - dst.Data[i]
	}
	if err := q.engine.F32(signs, residual, q.s, rows, dim, dim); err != nil {
		return 0, err
	}
	for i, x := range signs {
		signs[i] = 1
		if x < 0 {
			signs[i] = -1
		}
	}
	estimate := make([]float32, rows*dim)
	if err := q.engine.F32(estimate, signs, q.trans, rows, dim, dim); err != nil {
		return 0, err
	}
	factor := float32(math.Sqrt(math.Pi/2) / float64(dim))
	for r := range rows {
		length, err := halfOf(float32(norm(residual[r*dim : (r+1)*dim])))
		if err != nil {
			return 0, fmt.Errorf("row %d: %w", r, err)
		}
		for i := r * dim; i < (r+1)*dim; i++ {
			dst.Data[i] += factor * length * estimate[i]
		}
	}
	return int64(rows) * int64(ceilDiv(dim, 8)+2), nil
}
