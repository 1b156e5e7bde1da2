// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Without pressure every output is that of exact attention over the rows as binary16.
func TestAttend_EqualsExactAttention(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	s, err := r.c.NewSequence()
	require.NoError(t, err)
	for _, n := range []int{1, 2, 1, 40, 1, 100, 1, 1, 30} {
		lo := s.Len()
		outs := r.step(s, 1, n, n)
		for l, out := range outs {
			for i := range n {
				w := r.geo.Heads * r.geo.HeadDimV
				require.Less(t, distance(out[i*w:(i+1)*w], r.want(1, lo+int64(i), l)), 1e-9, "layer %d position %d",
					l, lo+int64(i))
			}
		}
		r.audit()
	}
	require.NoError(t, s.Close())
	r.audit()
	r.closeAll()
}

// Stored bytes and outputs are the same for every way to divide the tokens into steps, whatever the
// starting coding.
func TestChunking_DoesNotMatter(t *testing.T) {
	const n = 300
	for _, start := range [][sides]rung{{f16, f16}, {lm4, lm4}, {lm3, lm2}} {
		var state []byte
		var outs [][]float32
		for _, chunks := range [][]int{{1}, {300}, {7}, {31, 33, 64, 100, 1}, {32}} {
			r := newRig(t, testGeometry(), testConfig())
			r.c.pressure.fixed = start != starts[0]
			r.c.start = start
			s, err := r.c.NewSequence()
			require.NoError(t, err)
			got := make([][]float32, r.geo.Layers)
			for i := 0; s.Len() < n; i++ {
				k := min(chunks[i%len(chunks)], n-int(s.Len()))
				for l, out := range r.step(s, 1, k, k) {
					got[l] = append(got[l], out...)
				}
			}
			r.audit()
			if state == nil {
				state, outs = r.state(s), got
			}
			what := fmt.Sprintf("chunks of %v from %v", chunks, start)
			r.sameBits(outs, got, what)
			require.True(t, bytes.Equal(state, r.state(s)), what)
			r.closeAll()
		}
	}
}

// A step that is rolled back, or of which a part is kept, leaves what the straight way leaves.
func TestRollback_LeavesNoTrace(t *testing.T) {
	for _, start := range [][sides]rung{{f16, f16}, {lm3, lm3}} {
		straight, crooked := newRig(t, testGeometry(), testConfig()), newRig(t, testGeometry(), testConfig())
		a, err := straight.c.NewSequence()
		require.NoError(t, err)
		b, err := crooked.c.NewSequence()
		require.NoError(t, err)
		for _, r := range []*rig{straight, crooked} {
			r.c.start, r.c.pressure.fixed = start, start != starts[0]
		}
		for i := 0; a.Len() < 250; i++ {
			n := 1 + i*7%5
			want := straight.step(a, 1, n, n)
			crooked.step(b, 2, 1+i%90, 0)
			crooked.audit()
			got := crooked.step(b, 1, 20, n)
			for l := range got {
				got[l] = got[l][:len(want[l])]
			}
			straight.sameBits(want, got, fmt.Sprintf("step %d", i))
			require.True(t, bytes.Equal(straight.state(a), crooked.state(b)), "step %d", i)
			crooked.audit()
		}
		straight.closeAll()
		crooked.closeAll()
	}
}
