// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"sync"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Memo keeps what Compress measured of one capture, for compressing the same capture again with
// other settings: what an error costs in each head does not depend on the rate, the menus or the
// importance. The file is the same with and without; only what is to be expected of it is not
// rehearsed. A Memo belongs to one capture and one backend; it is safe for concurrent use.
type Memo struct {
	mu     sync.Mutex
	probes map[memoKey]float64
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
	key := memoKey{l.index, int(blocks[0].KVHead), sinks, side, coding, c.cfg.Seed, c.cfg.RowBias}
	m.mu.Lock()
	e, ok := m.probes[key]
	m.mu.Unlock()
	if ok {
		return e, nil
	}
	e, err := c.probeAt(ctx, l, q, blocks, sinks, past, side, coding, want)
	if err != nil {
		return e, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probes == nil {
		m.probes = map[memoKey]float64{}
	}
	m.probes[key] = e
	return e, nil
}
