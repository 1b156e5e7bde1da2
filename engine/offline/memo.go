// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"context"
	"sync"
)

// Memo keeps what Compress measured of one capture, for compressing the same capture again with
// other settings: what an error costs in each head does not depend on the rate, the menus or the
// importance. The result is the same with and without. A Memo belongs to one capture and one
// backend; it is safe for concurrent use.
type Memo struct {
	mu    sync.Mutex
	stats map[memoKey]headStats
}

// memoKey is all that a head's calibration depends on, beside capture and backend.
type memoKey struct {
	layer, head, sinks int
	seed               uint64
	rowBias            bool
}

// calibrated is calibrate, or what it gave before.
func (c *compressor) calibrated(ctx context.Context, l *layerInput, head int) (headStats, error) {
	m := c.cfg.Memo
	if m == nil {
		return c.calibrate(ctx, l, head)
	}
	key := memoKey{l.index, head, c.cfg.Sinks, c.cfg.Seed, c.cfg.RowBias}
	m.mu.Lock()
	st, ok := m.stats[key]
	m.mu.Unlock()
	if ok {
		return st, nil
	}
	st, err := c.calibrate(ctx, l, head)
	if err != nil {
		return st, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stats == nil {
		m.stats = map[memoKey]headStats{}
	}
	m.stats[key] = st
	return st, nil
}
