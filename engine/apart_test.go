// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
)

// apart is a text that is text 1 up to a position and text 2 from there.
func apart(at, end int64) []int32 {
	return append(ids(1, 0, min(at, end)), ids(2, min(at, end), end)...)
}

// tell adds such a text to a sequence, up to a position.
func (r *rig) tell(s *Sequence, at, end int64) {
	r.t.Helper()
	if s.Len() < min(at, end) {
		r.with(s, 1, min(at, end))
	}
	if s.Len() < end {
		r.with(s, 2, end)
	}
}

// Two texts that part within a segment, before its last key, behind it or between, are each found with rows of their
// own: in memory, and in a store by a cache that has nothing or one of them in memory.
func TestPrefixes_Part(t *testing.T) {
	ctx := context.Background()
	for _, at := range []int64{1, 63, 64, 65, 67, 68, 100, 128, 131, 150, 192, 259, 300} {
		cfg := testConfig()
		cfg.Shared = store.NewMemory(store.MemoryOptions{})
		cfg.Store = store.NewMemory(store.MemoryOptions{})
		open := func() *rig { return newRig(t, testGeometry(), cfg) }
		alone, both, empty, one := open(), open(), open(), open()
		end := func(r *rig, s *Sequence) [][]float32 {
			r.tell(s, at, 380)
			out := r.step(s, 2, 20, 20)
			r.audit()
			return out
		}
		s, err := alone.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		want := outputs(end(alone, s))
		first, err := both.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		both.with(first, 1, 400)
		require.NoError(t, first.Publish(ctx, nil, never))
		second, err := both.c.MatchPrefix(nil, apart(at, 400))
		require.NoError(t, err)
		require.LessOrEqual(t, second.Len(), at)
		both.tell(second, at, 400)
		require.NoError(t, second.Publish(ctx, nil, never))

		check := func(r *rig, found func([]byte, []int32) (*Sequence, error), least int64) {
			s, err := found(nil, apart(at, 380))
			require.NoError(t, err)
			require.GreaterOrEqual(t, s.Len(), least, "apart at %d", at)
			require.Equal(t, want, outputs(end(r, s)), "apart at %d", at)
			s, err = found(nil, ids(1, 0, 380))
			require.NoError(t, err)
			require.EqualValues(t, 320, s.Len())
		}
		recall := func(r *rig) func([]byte, []int32) (*Sequence, error) {
			return func(salt []byte, tokens []int32) (*Sequence, error) { return r.c.RecallPrefix(ctx, salt, tokens) }
		}
		check(both, both.c.MatchPrefix, 320)
		check(empty, recall(empty), 320)
		s, err = one.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		one.with(s, 1, 400)
		check(one, recall(one), 320)

		require.NoError(t, both.c.Unpublish(ctx, nil, apart(at, 400), int(at)))
		other := open()
		s, err = other.c.RecallPrefix(ctx, nil, ids(1, 0, 380))
		require.NoError(t, err)
		require.EqualValues(t, 320, s.Len(), "the other one is found, apart at %d", at)
		s, err = other.c.RecallPrefix(ctx, nil, apart(at, 380))
		require.NoError(t, err)
		require.LessOrEqual(t, s.Len(), at)
		require.NoError(t, both.c.Unpublish(ctx, nil, ids(1, 0, 400), 0))
		require.Zero(t, records(t, cfg.Shared), "apart at %d", at)
		other.closeAll()

		a, err := first.Park(ctx, nil, never)
		require.NoError(t, err)
		b, err := second.Park(ctx, nil, never)
		require.NoError(t, err)
		names, err := both.c.Images(ctx, nil, a)
		require.NoError(t, err)
		require.NoError(t, both.c.Erase(ctx, nil, b, func(k store.Key) bool { return slices.Contains(names, k) }))
		s, err = both.c.Resume(ctx, nil, a)
		require.NoError(t, err)
		require.EqualValues(t, 400, s.Len())
		require.NoError(t, both.c.Erase(ctx, nil, a, nil))
		require.Zero(t, records(t, cfg.Store), "apart at %d", at)
		for _, r := range []*rig{alone, both, empty, one} {
			r.closeAll()
		}
	}
}
