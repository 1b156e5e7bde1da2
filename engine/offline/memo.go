// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"fmt"
	"sync"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// Memo keeps what Compress measured of one capture, for compressing the same capture again with
// other settings: what an error costs in each head does not depend on the rate, the menus or the
// importance, and weights and what levels cost do not depend on the rate. The file is the same with
// and without; only what is to be expected of it is not rehearsed. A Memo belongs to one capture and
// one backend; it is safe for concurrent use. It holds some 10 bytes a token and KV head for each
// importance profile.
type Memo struct {
	mu      sync.Mutex
	probes  map[memoKey]float64
	weights map[weightKey]layerWeight
	ratios  map[ratioKey][]float64
}

// weightKey is all that weights depend on, ratioKey all that the ratios of levels do.
type (
	weightKey struct {
		layer, tokens int
		importance    string
	}
	ratioKey struct {
		layer, head, sinks int
		importance, levels string
	}
	layerWeight struct {
		w   [][]float32 // [heads][tokens]
		use ImportanceUse
	}
)

// remember returns what m, one of the maps of a memo, holds for the key, or else what f gives.
func remember[K comparable, V any](memo *Memo, m *map[K]V, key K, f func() (V, error)) (V, error) {
	memo.mu.Lock()
	v, ok := (*m)[key]
	memo.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := f()
	if err != nil {
		return v, err
	}
	memo.mu.Lock()
	defer memo.mu.Unlock()
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = v
	return v, nil
}

// memoKey is all that a probe depends on, beside capture and backend.
type memoKey struct {
	layer, head, sinks, side int
	coding                   quant.Coding
	seed                     uint64
	rowBias                  bool
}

// probed is probeAt, or what it gave before.
func (c *compressor) probed(ctx context.Context, l *layerInput, q *backend.Queries,
	blocks []backend.Block, sinks, past, side int, coding quant.Coding,
	want []float32) (float64, error) {
	m := c.cfg.Memo
	if m == nil {
		return c.probeAt(ctx, l, q, blocks, sinks, past, side, coding, want)
	}
	key := memoKey{l.index, int(blocks[0].KVHead), sinks, side, coding, c.cfg.Seed, c.rowBias()}
	return remember(m, &m.probes, key, func() (float64, error) {
		return c.probeAt(ctx, l, q, blocks, sinks, past, side, coding, want)
	})
}

// weighedLayer is weighLayer, or what it gave before.
func (c *compressor) weighedLayer(ctx context.Context, l *layerInput, p importance.Weighting) ([][]float32,
	ImportanceUse, error) {
	m := c.cfg.Memo
	if m == nil {
		return c.weighLayer(ctx, l, p)
	}
	got, err := remember(m, &m.weights, weightKey{l.index, l.tokens, p.String()}, func() (x layerWeight, err error) {
		x.w, x.use, err = c.weighLayer(ctx, l, p)
		return x, err
	})
	return got.w, got.use, err
}

// probedLevels is probeLevels, or what it gave before. Weights that were handed in are not told
// apart by a name, so nothing is kept of them.
func (c *compressor) probedLevels(ctx context.Context, h *headOf, q *backend.Queries,
	tail []backend.Block, want []float32) ([]float64, error) {
	m := c.cfg.Memo
	if m == nil || c.cfg.Weighted {
		return c.probeLevels(ctx, h, q, tail, want)
	}
	key := ratioKey{layer: h.l.index, head: h.head, sinks: c.cfg.Sinks, importance: c.cfg.Importance}
	key.levels = fmt.Sprint(c.specs)
	return remember(m, &m.ratios, key, func() ([]float64, error) {
		return c.probeLevels(ctx, h, q, tail, want)
	})
}
