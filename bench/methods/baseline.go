// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
)

// rotationSeed is the seed of every rotation and projection.
const rotationSeed = 1

// shapeOf is the shape that all layers of a context share.
type shapeOf struct {
	tokens, heads, kvHeads, gqa int
	dimK, dimV                  int
}

// shape checks a context and returns its shape. name is the name of the method, for errors; needQ says
// that it needs queries.
//
// Errors: quant.ErrShape.
func (c *Context) shape(name string, needQ bool) (shapeOf, error) {
	bad := func(format string, args ...any) (shapeOf, error) {
		return shapeOf{}, fmt.Errorf("kvist/methods: %s: "+format+": %w",
			append(append([]any{name}, args...), quant.ErrShape)...)
	}
	if c == nil || len(c.Layers) == 0 {
		return bad("the context has no layers")
	}
	g := c.Geometry
	if err := g.Validate(); err != nil {
		return shapeOf{}, fmt.Errorf("kvist/methods: %s: geometry of the context: %w", name, err)
	}
	s := shapeOf{heads: g.Heads, kvHeads: g.KVHeads, gqa: g.GQARatio(),
		dimK: g.HeadDim, dimV: g.HeadDimV}
	s.tokens = len(c.Layers[0].K) / (g.KVHeads * g.HeadDim)
	if s.tokens == 0 {
		return bad("the context has no tokens")
	}
	if c.Tokens != nil && len(c.Tokens) != s.tokens {
		return bad("%d token numbers for %d rows", len(c.Tokens), s.tokens)
	}
	for i, l := range c.Layers {
		wantK, wantV := s.kvHeads*s.tokens*s.dimK, s.kvHeads*s.tokens*s.dimV
		if len(l.K) != wantK || len(l.V) != wantV {
			return bad("layer %d: K has %d values and V %d, want %d and %d",
				i, len(l.K), len(l.V), wantK, wantV)
		}
		want := s.heads * s.tokens * s.dimK
		if len(l.Q) != want && (needQ || len(l.Q) != 0) {
			return bad("layer %d: Q has %d values, want %d", i, len(l.Q), want)
		}
	}
	return s, nil
}

// values returns the number of values of K and V in all layers.
func (s shapeOf) values(layers int) int64 {
	return int64(layers) * int64(s.kvHeads) * int64(s.tokens) * int64(s.dimK+s.dimV)
}

// k returns the rows of K of one head, [tokens, head_dim], sharing memory.
func (s shapeOf) k(x []float32, head int) quant.Rows {
	n := s.tokens * s.dimK
	return quant.Rows{Dim: s.dimK, Data: x[head*n : (head+1)*n : (head+1)*n]}
}

// v returns the rows of V of one head, [tokens, head_dim_v], sharing memory.
func (s shapeOf) v(x []float32, head int) quant.Rows {
	n := s.tokens * s.dimV
	return quant.Rows{Dim: s.dimV, Data: x[head*n : (head+1)*n : (head+1)*n]}
}

// inParallel calls f(0) to f(n-1) on at most GOMAXPROCS goroutines. It returns the error of the
// smallest index that failed. It starts no more calls once ctx is done.
func inParallel(ctx context.Context, n int, f func(i int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if errs[i] = ctx.Err(); errs[i] == nil {
					errs[i] = f(i)
				}
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// job is one call of Compress.
type job struct {
	shapeOf
	name   string
	c      *Context
	engine *matmul.Engine // one worker, because layers run in parallel
}

// eachLayer runs a method layer by layer. f fills out, whose K and V are allocated, and returns the
// stored bytes of the layer.
func eachLayer(ctx context.Context, m Method, c *Context, needQ bool,
	f func(j *job, layer int, out *CacheLayer) (int64, error)) (*Cache, error) {
	s, err := c.shape(m.Name(), needQ)
	if err != nil {
		return nil, err
	}
	engine, err := matmul.Open(matmul.Options{Workers: 1})
	if err != nil {
		return nil, fmt.Errorf("kvist/methods: %s: %w", m.Name(), err)
	}
	j := &job{shapeOf: s, name: m.Name(), c: c, engine: engine}
	cache := &Cache{Layers: make([]CacheLayer, len(c.Layers))}
	bytes := make([]int64, len(c.Layers))
	err = inParallel(ctx, len(c.Layers), func(i int) error {
		out := &cache.Layers[i]
		out.K = make([]float32, len(c.Layers[i].K))
		out.V = make([]float32, len(c.Layers[i].V))
		var err error
		if bytes[i], err = f(j, i, out); err != nil {
			return fmt.Errorf("kvist/methods: %s: layer %d: %w", j.name, i, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, n := range bytes {
		cache.Bytes += n
	}
	return cache, nil
}

// sideCoder encodes the rows of one side of one head and decodes them to dst, which has the shape of
// src. It returns the stored bytes.
type sideCoder func(dst, src quant.Rows) (int64, error)

// eachHead runs a method that codes K and V of every head by themselves. It keeps the first sinks
// tokens and the last window tokens at f16.
func eachHead(ctx context.Context, m Method, c *Context, sinks, window int,
	k, v sideCoder) (*Cache, error) {
	if sinks < 0 || window < 0 {
		return nil, fmt.Errorf("kvist/methods: %s: %d sinks, window of %d tokens, "+
			"want none below 0: %w", m.Name(), sinks, window, quant.ErrShape)
	}
	return eachLayer(ctx, m, c, false, func(j *job, layer int, out *CacheLayer) (int64, error) {
		var bytes int64
		for h := range j.kvHeads {
			l := &c.Layers[layer]
			n, err := codeSide(j.k(out.K, h), j.k(l.K, h), sinks, window, k)
			if err != nil {
				return 0, fmt.Errorf("rows of K, kv_head %d: %w", h, err)
			}
			bytes += n
			n, err = codeSide(j.v(out.V, h), j.v(l.V, h), sinks, window, v)
			if err != nil {
				return 0, fmt.Errorf("rows of V, kv_head %d: %w", h, err)
			}
			bytes += n
		}
		return bytes, nil
	})
}

// codeSide keeps the first sinks and the last window rows at f16 and codes the rows between them.
func codeSide(dst, src quant.Rows, sinks, window int, code sideCoder) (int64, error) {
	rows := src.Len()
	lo := min(sinks, rows)
	hi := max(lo, rows-min(window, rows))
	bytes, err := keepF16(cut(dst, 0, lo), cut(src, 0, lo))
	if err != nil {
		return 0, err
	}
	n, err := keepF16(cut(dst, hi, rows), cut(src, hi, rows))
	if err != nil {
		return 0, err
	}
	bytes += n
	if lo == hi {
		return bytes, nil
	}
	n, err = code(cut(dst, lo, hi), cut(src, lo, hi))
	return bytes + n, err
}

// cut returns rows [lo, hi), sharing memory.
func cut(r quant.Rows, lo, hi int) quant.Rows {
	return quant.Rows{Dim: r.Dim, Data: r.Data[lo*r.Dim : hi*r.Dim : hi*r.Dim]}
}

// keepF16 stores rows at f16: 2 bytes a value.
//
// Errors: quant.ErrRange for NaN and values out of the range of binary16.
func keepF16(dst, src quant.Rows) (int64, error) {
	for i, x := range src.Data {
		y, err := halfOf(x)
		if err != nil {
			return 0, fmt.Errorf("row %d: %w", i/src.Dim, err)
		}
		dst.Data[i] = y
	}
	return 2 * int64(len(src.Data)), nil
}

// halfOf rounds to binary16.
//
// Errors: quant.ErrRange for NaN and values out of its range.
func halfOf(x float32) (float32, error) {
	h := quant.F32ToF16(x)
	if h&0x7c00 == 0x7c00 {
		return 0, fmt.Errorf("value %g is out of the range of binary16: %w", x, quant.ErrRange)
	}
	return quant.F16ToF32(h), nil
}

// Uniform stores all rows of K in one coding and all rows of V in another. It is quantization without
// importance, and what plain caches do (f16, ggml-q8_0, ggml-q4_0).
//
// Bytes: the packed bytes of the codings ([quant.Coding.PackedBytes], one block a head), and 2 a
// value for the sinks.
//
// Source: by coding, see package quant. TurboQuant-mse (2025, arXiv 2504.19874) with the
// randomised Hadamard rotation in place of a dense one; ggml's formats byte for byte.
type Uniform struct {
	K, V  quant.Coding
	Sinks int // first tokens kept at f16
}

// Name returns "lm3", "tqmse4:sinks=4" or "uniform:k=lm3+len+s8,v=lm2+len+s8,sinks=4".
func (u Uniform) Name() string {
	var args []string
	name := u.K.String()
	if u.K != u.V {
		name = "uniform"
		args = append(args, "k="+u.K.String(), "v="+u.V.String())
	}
	if u.Sinks != 0 {
		args = append(args, "sinks="+strconv.Itoa(u.Sinks))
	}
	return withArgs(name, args)
}

// Source names where the coding comes from.
func (u Uniform) Source() string {
	switch f := u.K.Format; {
	case f.Exact():
		return "uncompressed, rounded to the type"
	case f == quant.GGMLQ8_0 || f == quant.GGMLQ4_0:
		return "ggml cache types, byte for byte"
	case f >= quant.TQMSE1 && f <= quant.TQMSE4:
		return "TurboQuant-mse, arXiv 2504.19874; Hadamard in place of a dense rotation"
	}
	return "kvist's formats, every row alike"
}

// Compress implements Method.
//
// Errors: quant.ErrShape, quant.ErrUnsupported, quant.ErrRange.
func (u Uniform) Compress(ctx context.Context, c *Context) (*Cache, error) {
	return eachHead(ctx, u, c, u.Sinks, 0, codingCoder(u.K), codingCoder(u.V))
}

// codingCoder returns a sideCoder for a coding.
func codingCoder(coding quant.Coding) sideCoder {
	return func(dst, src quant.Rows) (int64, error) {
		if err := coding.CheckDim(src.Dim); err != nil {
			return 0, err
		}
		packed := make([]byte, coding.PackedBytes(src.Len(), src.Dim))
		if err := quant.Encode(packed, coding, src, rotationSeed); err != nil {
			return 0, err
		}
		return int64(len(packed)), quant.Decode(dst, coding, packed, rotationSeed)
	}
}

// withArgs joins a name and its arguments as ByName reads them.
func withArgs(name string, args []string) string {
	if len(args) == 0 {
		return name
	}
	return name + ":" + strings.Join(args, ",")
}

// topRows returns the n indices with the largest scores, ascending. Of equal scores it takes the
// earlier row, so the choice does not depend on the sort.
func topRows(score []float64, n int) []int {
	order := make([]int, len(score))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case score[a] > score[b]:
			return -1
		case score[a] < score[b]:
			return 1
		}
		return 0
	})
	kept := order[:min(n, len(order))]
	slices.Sort(kept)
	return kept
}

// dot and norm use float64: their results decide choices and do not become codes.
func dot(a, b []float32) float64 {
	var s float64
	for i, x := range a {
		s += float64(x) * float64(b[i])
	}
	return s
}

func norm(a []float32) float64 { return math.Sqrt(dot(a, a)) }
