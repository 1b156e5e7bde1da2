// SPDX-License-Identifier: Apache-2.0

package weigh

import (
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// expect feeds the tracker with what is known of the queries of a head.
func (c *Weigher) expect(l *input.Layer, head int, track *importance.Tracker) error {
	heads := make([]importance.QueryMoments, c.Geo.GQARatio())
	for g := range heads {
		heads[g] = c.Queries(l.Number, head*len(heads)+g)
	}
	return track.Expect(heads...)
}

// expectedWindow is the queries that are left out of expected attention together.
const expectedWindow = 64

// observeQueries feeds the tracker with all queries of the capture, for expected attention, but for
// windows that hold one that is not finite.
func (c *Weigher) observeQueries(l *input.Layer, head int, track *importance.Tracker,
	tokens int) (skipped bool, err error) {
	group, dim := c.Geo.GQARatio(), l.K.Dim()
	for first := 0; first < tokens; first += expectedWindow {
		n := min(expectedWindow, tokens-first)
		heads := make([]quant.Rows, group)
		finite := true
		for g := range heads {
			heads[g] = quant.Rows{Dim: dim, Data: make([]float32, n*dim)}
			if err := l.Q.ReadF32(head*group+g, first, n, heads[g].Data); err != nil {
				return skipped, err
			}
			finite = finite && input.Finite(heads[g].Data)
		}
		if !finite {
			skipped = true
			continue // queries that are not finite Weigh nothing
		}
		if err := track.ObserveQueries(int64(first), heads...); err != nil {
			return skipped, err
		}
	}
	return skipped, nil
}
