// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"context"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// nextRows holds the rows of the tokens after a context. No method sees them.
type nextRows struct {
	Layers []Layer // [heads, later tokens, head_dim] as in a Context, at the positions after it
}

// futureError returns the future-attention error of a cache, mean over layers. Let out be the attention
// of the later queries to the exact context and, causally, to the exact rows after it, and out' that to
// the cache and these rows. The error of a layer is sum |out' - out|^2 / sum |out|^2 over all heads and
// queries. For many caches of one context newFuture is faster.
//
// It is NaN if the three do not belong together.
func futureError(c *Context, cache *Cache, next *nextRows) float64 {
	f, err := newFuture(c, next)
	if err != nil {
		return math.NaN()
	}
	e, err := f.Error(context.Background(), cache)
	if err != nil {
		return math.NaN()
	}
	return e
}

// future measures caches of one context by the attention of later queries. Its methods may be
// called from many goroutines.
type future struct {
	shapeOf
	c      *Context
	next   *nextRows
	later  int // tokens of next
	engine *matmul.Engine
	exact  [][]float32 // per layer, [kv_heads][later * gqa, head_dim_v]
}

// newFuture computes the exact attention of the later queries.
//
// Errors: quant.ErrShape.
func newFuture(c *Context, next *nextRows) (*future, error) {
	s, err := c.shape("future attention", false)
	if err != nil {
		return nil, err
	}
	if next == nil || len(next.Layers) != len(c.Layers) {
		return nil, shapef("future attention", "no later tokens of %d layers", len(c.Layers))
	}
	f := &future{shapeOf: s, c: c, next: next, exact: make([][]float32, len(c.Layers))}
	f.later = len(next.Layers[0].K) / (s.kvHeads * s.dimK)
	for i, l := range next.Layers {
		k, v, q := s.kvHeads*f.later*s.dimK, s.kvHeads*f.later*s.dimV, s.heads*f.later*s.dimK
		if f.later == 0 || len(l.K) != k || len(l.V) != v || len(l.Q) != q {
			return nil, shapef("future attention",
				"layer %d: later K, V, Q of %d, %d, %d values, want %d, %d, %d",
				i, len(l.K), len(l.V), len(l.Q), k, v, q)
		}
	}
	if f.engine, err = matmul.Open(matmul.Options{Workers: 1}); err != nil {
		return nil, fmt.Errorf("kvist/methods: future attention: %w", err)
	}
	return f, inParallel(context.Background(), len(c.Layers), func(i int) error {
		var err error
		f.exact[i], err = f.attend(i, &CacheLayer{K: c.Layers[i].K, V: c.Layers[i].V})
		return err
	})
}

// Error returns the future-attention error of a cache, mean over layers.
//
// Errors: quant.ErrShape for a cache of another shape.
func (f *future) Error(ctx context.Context, cache *Cache) (float64, error) {
	layers, err := f.Layers(ctx, cache)
	var sum float64
	for _, e := range layers {
		sum += e / float64(len(layers))
	}
	return sum, err
}

// Layers returns the future-attention error of every layer.
//
// Errors: quant.ErrShape for a cache of another shape.
func (f *future) Layers(ctx context.Context, cache *Cache) ([]float64, error) {
	if len(cache.Layers) != len(f.c.Layers) {
		return nil, shapef("future attention", "cache of %d layers, want %d",
			len(cache.Layers), len(f.c.Layers))
	}
	errs := make([]float64, len(cache.Layers))
	rows := f.kvHeads * f.tokens
	return errs, inParallel(ctx, len(errs), func(i int) error {
		l := &cache.Layers[i]
		if len(l.K) != rows*f.dimK || len(l.V) != rows*f.dimV ||
			(l.Keep != nil && len(l.Keep) != rows) || (l.Bias != nil && len(l.Bias) != rows) {
			return shapef("future attention", "layer %d: K %d, V %d values, keep %d, bias %d, "+
				"want %d, %d, %d rows or none", i, len(l.K), len(l.V), len(l.Keep), len(l.Bias),
				rows*f.dimK, rows*f.dimV, rows)
		}
		out, err := f.attend(i, l)
		if err != nil {
			return err
		}
		errs[i] = relativeError(f.exact[i], out)
		return nil
	})
}

// relativeError is the squared error of got over the squared length of want.
func relativeError(want, got []float32) float64 {
	var e, ref float64
	for i, v := range want {
		d := float64(got[i]) - float64(v)
		e, ref = e+d*d, ref+float64(v)*float64(v)
	}
	return e / ref
}

// attend returns the outputs of the later queries of a layer, [kv_heads][later * gqa, head_dim_v].
func (f *future) attend(layer int, l *CacheLayer) ([]float32, error) {
	next := &f.next.Layers[layer]
	rows := f.later * f.gqa
	out := make([]float32, f.kvHeads*rows*f.dimV)
	bias := make([]float32, f.tokens)
	for h := range f.kvHeads {
		k := quant.Rows{Dim: f.dimK, Data: join(f.k(l.K, h).Data, part(next.K, h, f.kvHeads))}
		v := quant.Rows{Dim: f.dimV, Data: join(f.v(l.V, h).Data, part(next.V, h, f.kvHeads))}
		for t := range bias {
			bias[t] = 0
			if l.Bias != nil {
				bias[t] = l.Bias[h*f.tokens+t]
			}
			if l.Keep != nil && !l.Keep[h*f.tokens+t] {
				bias[t] = float32(math.Inf(-1))
				clear(k.Row(t)) // a dropped row must not be read
				clear(v.Row(t))
			}
		}
		// Rows of q: all query heads of the KV head, one after the other.
		q := next.Q[h*rows*f.dimK : (h+1)*rows*f.dimK]
		if err := f.head(out[h*rows*f.dimV:(h+1)*rows*f.dimV], q, k, v, bias); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// head runs the queries of one KV head over its rows, a chunk of queries at a time.
func (f *future) head(out, q []float32, k, v quant.Rows, bias []float32) error {
	n := k.Len()
	trans := make([]float32, len(v.Data))
	for t := range n {
		for c, x := range v.Row(t) {
			trans[c*n+t] = x
		}
	}
	scale := float32(1 / math.Sqrt(float64(k.Dim)))
	scores := make([]float32, attentionChunk*n)
	rows := len(q) / k.Dim
	for first := 0; first < rows; first += attentionChunk {
		m := min(attentionChunk, rows-first)
		if err := f.engine.F32(scores, q[first*k.Dim:], k.Data, m, n, k.Dim); err != nil {
			return err
		}
		for r := range m {
			p := scores[r*n : (r+1)*n]
			seen := f.tokens + (first+r)%f.later + 1
			for t := range p[:seen] {
				p[t] *= scale
				if t < len(bias) {
					p[t] += bias[t]
				}
			}
			softmax(p[:seen], 1)
			clear(p[seen:])
		}
		if err := f.engine.F32(out[first*v.Dim:], scores, trans, m, v.Dim, n); err != nil {
			return err
		}
	}
	return nil
}

// part returns one of n equal parts.
func part(x []float32, i, n int) []float32 { return x[i*len(x)/n : (i+1)*len(x)/n] }

func join(a, b []float32) []float32 {
	return append(append(make([]float32, 0, len(a)+len(b)), a...), b...)
}

// loadCapture reads the layers of a capture into a Context, and the rows of the tokens after it. next
// is nil if the capture has no K, V and Q of later tokens.
//
// Errors: quant.ErrUnsupported for a file that is no KV capture; *capture.FormatError.
func loadCapture(src *capture.Source) (c *Context, next *nextRows, err error) {
	if !src.Info().KV {
		return nil, nil, fmt.Errorf("kvist/methods: %s holds no KV cache: %w", src.Info().Name,
			quant.ErrUnsupported)
	}
	c, next = &Context{Geometry: src.Info().Geometry}, &nextRows{}
	if _, ok := src.Lookup("tokens"); ok {
		c.Tokens = make([]int32, src.Info().Tokens)
		if err := src.ReadTokens(false, 0, c.Tokens); err != nil {
			return nil, nil, err
		}
	}
	read := func(layer int, p capture.Part) ([]float32, error) {
		t, ok := src.KV(layer, p)
		if !ok {
			return nil, nil
		}
		x := make([]float32, t.Heads()*t.Rows()*t.Dim())
		return x, readPart(src, layer, p, x)
	}
	for _, n := range src.Info().Layers {
		var l, later Layer
		for _, t := range []struct {
			to   *[]float32
			part capture.Part
		}{{&l.K, capture.K}, {&l.V, capture.V}, {&l.Q, capture.Q},
			{&later.K, capture.KNext}, {&later.V, capture.VNext}, {&later.Q, capture.QNext}} {
			if *t.to, err = read(n, t.part); err != nil {
				return nil, nil, err
			}
		}
		c.Layers = append(c.Layers, l)
		if next != nil && later.Q != nil {
			next.Layers = append(next.Layers, later)
		} else {
			next = nil
		}
	}
	return c, next, nil
}
func shapef(op, format string, args ...any) error {
	return fmt.Errorf("kvist/methods: %s: %s: %w", op, fmt.Sprintf(format, args...), quant.ErrShape)
}
