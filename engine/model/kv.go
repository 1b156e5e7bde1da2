// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"math"
	"runtime"
	"slices"

	"github.com/kvist-project/kvist/cpu/matmul"
	"github.com/kvist-project/kvist/quant"
)

// KVStore holds the K and V of one sequence. Forward calls Append and then Attend, once per
// layer and chunk, layers in order. A store need not be safe for concurrent use.
type KVStore interface {
	// Append adds the rows of positions [pos, pos+n): k [n, kv_heads, head_dim] with RoPE
	// applied, v [n, kv_heads, head_dim_v]. It must not keep the slices.
	Append(layer int, pos int, k, v []float32, n int) error
	// Attend computes softmax(scores).v with the scores and the window of Model.Attention:
	// q [n, heads, head_dim], out [n, heads, head_dim_v]. Query i is at position pos+i and sees the
	// rows of positions <= pos+i within its window, appended ones included. out does not overlap q.
	Attend(layer int, pos int, q []float32, n int, out []float32) error
}

// KVOptions are the options of an ExactKV. The zero value keeps float32.
type KVOptions struct {
	// F16 rounds K and V to binary16 when they are appended, as serving systems store them.
	F16 bool
	// ISA and Workers are as in Options.
	ISA     string
	Workers int
	// Attention is how each layer attends, [layers]. Default nil: scale 1/sqrt(head_dim) and no window.
	Attention []LayerAttention
}

// kvBlock is the number of tokens in a block of storage.
const kvBlock = 128

// ExactKV is the uncompressed cache: rows in float32, attention in float32. AppendRows fills it
// with the rows of a compressed context, to measure the attention to them. It belongs to one
// goroutine.
type ExactKV struct {
	geo     quant.Geometry
	opts    KVOptions
	engine  *matmul.Engine // runs on the calling goroutine
	attends []LayerAttention
	layers  []kvLayer
	scratch []attendScratch // one per worker
}

type kvLayer struct {
	n     int
	heads []kvHead
}

type kvHead struct{ blocks []*kvBlockData }

// kvBlockData holds kvBlock tokens of one head. Clones share blocks. A block that may be
// shared is copied before it is written to.
type kvBlockData struct {
	shared bool
	k      []float32 // panels of 16 tokens: [kvBlock/16][head_dim][16]
	v      []float32 // panels of 16 components: [head_dim_v/16, rounded up][kvBlock][16]; 0 beyond the last token
	bias   []float32 // [kvBlock], added to scores; -Inf drops a row; nil: all 0
}

// NewExactKV makes an empty cache for one sequence of a model of this geometry. Without
// ISA and Workers it uses the best instruction set and GOMAXPROCS.
//
// Errors: ErrShape; those of matmul.Open.
func NewExactKV(g quant.Geometry, o KVOptions) (*ExactKV, error) {
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("kvist/model: new cache: %w", err)
	}
	if o.Workers < 0 {
		return nil, shapef("new cache", "%d workers, want 0 or more", o.Workers)
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Attention == nil {
		o.Attention = slices.Repeat([]LayerAttention{plain(g)}, g.Layers)
	}
	if err := checkAttention(g, o.Attention); err != nil {
		return nil, err
	}
	e, err := matmul.Open(matmul.Options{ISA: o.ISA, Workers: 1})
	if err != nil {
		return nil, fmt.Errorf("kvist/model: new cache: %w", err)
	}
	kv := &ExactKV{geo: g, opts: o, engine: e, attends: o.Attention,
		layers: make([]kvLayer, g.Layers), scratch: make([]attendScratch, o.Workers)}
	for l := range kv.layers {
		kv.layers[l].heads = make([]kvHead, g.KVHeads)
	}
	return kv, nil
}

func checkAttention(g quant.Geometry, list []LayerAttention) error {
	const op = "new cache"
	if len(list) != g.Layers {
		return shapef(op, "the attention of %d layers, want %d", len(list), g.Layers)
	}
	for l, a := range list {
		switch {
		case a.Heads != g.Heads || a.KVHeads != g.KVHeads:
			return fmt.Errorf("kvist/model: %s: layer %d with %d heads and %d kv_heads, others with %d and %d: %w",
				op, l, a.Heads, a.KVHeads, g.Heads, g.KVHeads, quant.ErrUnsupported)
		case a.Window < 0 || !(a.Softcap >= 0) || !(a.Scale > 0):
			return shapef(op, "layer %d: window %d, soft cap %v, scale %v", l, a.Window, a.Softcap, a.Scale)
		}
	}
	return nil
}

// Len returns the number of tokens that every layer holds.
func (kv *ExactKV) Len() int {
	n := kv.layers[0].n
	for _, l := range kv.layers {
		n = min(n, l.n)
	}
	return n
}

// Geometry returns the shape of the cache.
func (kv *ExactKV) Geometry() quant.Geometry { return kv.geo }

func (kv *ExactKV) layer(op string, layer int) (*kvLayer, error) {
	if layer < 0 || layer >= len(kv.layers) {
		return nil, shapef(op, "layer %d, want 0 to %d", layer, len(kv.layers)-1)
	}
	return &kv.layers[layer], nil
}

// Append implements KVStore. pos must be the number of tokens that the layer holds.
//
// Errors: ErrShape.
func (kv *ExactKV) Append(layer, pos int, k, v []float32, n int) error {
	const op = "append to cache"
	l, err := kv.layer(op, layer)
	if err != nil {
		return err
	}
	g := kv.geo
	if n < 0 || pos != l.n || len(k) != n*g.KVHeads*g.HeadDim || len(v) != n*g.KVHeads*g.HeadDimV {
		return shapef(op, "layer %d: %d rows at position %d with %d values of K and %d of V, "+
			"want position %d, %d and %d", layer,
			n, pos, len(k), len(v), l.n, n*g.KVHeads*g.HeadDim, n*g.KVHeads*g.HeadDimV)
	}
	parallel(kv.opts.Workers, g.KVHeads, max(1, 64/max(n, 1)), func(lo, hi int) {
		for h := lo; h < hi; h++ {
			for t := range n {
				i := t*g.KVHeads + h
				kv.put(&l.heads[h], pos+t, k[i*g.HeadDim:(i+1)*g.HeadDim],
					v[i*g.HeadDimV:(i+1)*g.HeadDimV], 0)
			}
		}
	})
	l.n += n
	return nil
}

// ContextRows are the rows of some consecutive tokens in one layer, in the order of captures.
type ContextRows struct {
	K, V []float32 // [kv_heads, tokens, head_dim] with RoPE applied; [kv_heads, tokens, head_dim_v]
	Bias []float32 // [kv_heads, tokens], added to the rows' scores after scaling; nil: none
	Keep []bool    // [kv_heads, tokens], false: the row is dropped; nil: none is
}

// AppendRows appends the rows of some tokens to one layer. Call it for every layer to build a cache
// from a context that was compressed and decompressed; then call Forward at position Len. A head
// whose rows are all dropped attends only to later rows.
//
// Errors: ErrShape; ErrRange for a bias that is NaN or +Inf.
func (kv *ExactKV) AppendRows(layer, tokens int, r ContextRows) error {
	const op = "append rows to cache"
	l, err := kv.layer(op, layer)
	if err != nil {
		return err
	}
	g := kv.geo
	n := g.KVHeads * tokens
	if tokens < 0 || len(r.K) != n*g.HeadDim || len(r.V) != n*g.HeadDimV ||
		(r.Bias != nil && len(r.Bias) != n) || (r.Keep != nil && len(r.Keep) != n) {
		return shapef(op, "layer %d: %d values of K, %d of V, %d biases, %d marks, "+
			"want %d, %d and %d (or none) for %d tokens", layer,
			len(r.K), len(r.V), len(r.Bias), len(r.Keep), n*g.HeadDim, n*g.HeadDimV, n, tokens)
	}
	for i, b := range r.Bias {
		if math.IsNaN(float64(b)) || math.IsInf(float64(b), 1) {
			return fmt.Errorf("kvist/model: %s: layer %d: bias %d is %v: %w", op, layer, i, b,
				quant.ErrRange)
		}
	}
	for h := range g.KVHeads {
		for t := range tokens {
			i := h*tokens + t
			var bias float32
			if r.Bias != nil {
				bias = r.Bias[i]
			}
			if r.Keep != nil && !r.Keep[i] {
				bias = float32(math.Inf(-1))
			}
			kv.put(&l.heads[h], l.n+t, r.K[i*g.HeadDim:(i+1)*g.HeadDim],
				r.V[i*g.HeadDimV:(i+1)*g.HeadDimV], bias)
		}
	}
	l.n += tokens
	return nil
}

// put writes the row of one token of one head.
func (kv *ExactKV) put(h *kvHead, t int, k, v []float32, bias float32) {
	b := kv.writable(h, t/kvBlock)
	i := t % kvBlock
	if bias != 0 && b.bias == nil {
		b.bias = make([]float32, kvBlock)
	}
	if b.bias != nil {
		b.bias[i] = bias
	}
	round := func(x float32) float32 { return x }
	switch {
	case math.IsInf(float64(bias), -1):
		// A dropped row is zeroed: 0 * NaN would make the sums NaN.
		round = func(float32) float32 { return 0 }
	case kv.opts.F16:
		round = func(x float32) float32 { return quant.F16ToF32(quant.F32ToF16(x)) }
	}
	for c, x := range k {
		b.k[kPlace(i, c, kv.geo.HeadDim)] = round(x)
	}
	for c, x := range v {
		b.v[vPlace(i, c)] = round(x)
	}
}

// panel is the number of tokens of K, and of components of V, that lie side by side in a block.
const panel = matmul.PanelWidth

// panelled rounds up to whole panels.
func panelled(n int) int { return (n + panel - 1) / panel * panel }

// kPlace returns where component c of the K of token i lies in a block, vPlace that of its V.
func kPlace(i, c, headDim int) int { return (i/panel*headDim+c)*panel + i%panel }
func vPlace(i, c int) int          { return (c/panel*kvBlock+i)*panel + c%panel }

// writable returns block i of a head for writing. i is at most the number of blocks.
func (kv *ExactKV) writable(h *kvHead, i int) *kvBlockData {
	if i == len(h.blocks) {
		h.blocks = append(h.blocks, &kvBlockData{
			k: make([]float32, kvBlock*kv.geo.HeadDim), v: make([]float32, kvBlock*panelled(kv.geo.HeadDimV))})
	}
	b := h.blocks[i]
	if b.shared {
		b = &kvBlockData{k: append([]float32(nil), b.k...), v: append([]float32(nil), b.v...),
			bias: append([]float32(nil), b.bias...)}
		h.blocks[i] = b
	}
	return b
}

// Rows copies the rows of positions [from, to) of a layer, as Append rounded them: K [kv_heads,
// to-from, head_dim], V [kv_heads, to-from, head_dim_v]. Dropped rows are zero.
//
// Errors: ErrShape.
func (kv *ExactKV) Rows(layer, from, to int) (k, v []float32, err error) {
	const op = "read rows of cache"
	l, err := kv.layer(op, layer)
	if err != nil {
		return nil, nil, err
	}
	if from < 0 || from > to || to > l.n {
		return nil, nil, shapef(op, "positions [%d, %d), layer %d has %d", from, to, layer, l.n)
	}
	g, n := kv.geo, to-from
	k, v = make([]float32, g.KVHeads*n*g.HeadDim), make([]float32, g.KVHeads*n*g.HeadDimV)
	for h := range l.heads {
		for t := range n {
			b, i := l.heads[h].blocks[(from+t)/kvBlock], (from+t)%kvBlock
			for c := range g.HeadDim {
				k[(h*n+t)*g.HeadDim+c] = b.k[kPlace(i, c, g.HeadDim)]
			}
			for c := range g.HeadDimV {
				v[(h*n+t)*g.HeadDimV+c] = b.v[vPlace(i, c)]
			}
		}
	}
	return k, v, nil
}

// Truncate keeps the first n tokens.
//
// Errors: ErrShape if there are fewer.
func (kv *ExactKV) Truncate(n int) error {
	if n < 0 || n > kv.Len() {
		return shapef("truncate cache", "to %d tokens, it has %d", n, kv.Len())
	}
	for l := range kv.layers {
		layer := &kv.layers[l]
		if layer.n == n {
			continue
		}
		layer.n = n
		for h := range layer.heads {
			head := &layer.heads[h]
			clear(head.blocks[min(len(head.blocks), (n+kvBlock-1)/kvBlock):])
			head.blocks = head.blocks[:(n+kvBlock-1)/kvBlock]
			if n%kvBlock == 0 {
				continue
			}
			// Attention relies on zeros beyond the last token.
			b := kv.writable(head, n/kvBlock)
			for c := 0; c < kv.geo.HeadDimV; c += panel {
				clear(b.v[vPlace(n%kvBlock, c):vPlace(kvBlock, c)])
			}
			if b.bias != nil {
				clear(b.bias[n%kvBlock:])
			}
		}
	}
	return nil
}

// Clone returns an independent cache with the same tokens. The two share blocks until one of them
// writes to them, so many continuations of one long context cost little. Afterwards both caches may
// be used at the same time from different goroutines.
func (kv *ExactKV) Clone() *ExactKV {
	c := *kv
	c.scratch = make([]attendScratch, len(kv.scratch))
	c.layers = make([]kvLayer, len(kv.layers))
	for l := range kv.layers {
		c.layers[l] = kvLayer{n: kv.layers[l].n, heads: make([]kvHead, len(kv.layers[l].heads))}
		for h := range kv.layers[l].heads {
			blocks := kv.layers[l].heads[h].blocks
			for _, b := range blocks {
				if !b.shared { // another clone may be reading it
					b.shared = true
				}
			}
			c.layers[l].heads[h].blocks = append([]*kvBlockData(nil), blocks...)
		}
	}
	return &c
}
