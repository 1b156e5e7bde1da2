// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// records counts what a store holds.
func records(t *testing.T, s store.Store) (n int) {
	for _, err := range s.List(context.Background()) {
		require.NoError(t, err)
		n++
	}
	return n
}

// What was published of a text goes, but for its first segments that are kept; what another one has there stays.
func TestUnpublish(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	st := store.NewMemory(store.MemoryOptions{})
	cfg := testConfig()
	cfg.Shared = st
	r, other := newRig(t, testGeometry(), cfg), newRig(t, testGeometry(), cfg)
	publish := func(seed uint64, n int64) *Sequence {
		s, err := r.c.MatchPrefix(salt, nil)
		require.NoError(t, err)
		r.with(s, seed, n)
		require.NoError(t, s.Publish(ctx, salt, never))
		return s
	}
	found := func(c *Cache, seed uint64, n int64) int64 {
		s, err := c.RecallPrefix(ctx, salt, ids(seed, 0, n))
		require.NoError(t, err)
		defer s.Close() //nolint:errcheck // memory
		return s.Len()
	}
	publish(2, 300)
	alone := records(t, st)
	s := publish(1, 600)
	both := records(t, st)
	require.Greater(t, both, alone*3/2)
	require.NoError(t, r.c.Unpublish(ctx, []byte("two"), ids(1, 0, 600), 0))
	require.Equal(t, both, records(t, st), "of another salt")

	require.NoError(t, r.c.Unpublish(ctx, salt, ids(1, 0, 600), 300))
	left := records(t, st)
	require.Less(t, left, both)
	require.Greater(t, left, alone)
	kept := found(other.c, 1, 600)
	require.Positive(t, kept)
	require.LessOrEqual(t, kept, int64(300))
	require.NoError(t, r.c.Unpublish(ctx, salt, ids(1, 0, 600), 0))
	require.Equal(t, alone, records(t, st))
	require.Positive(t, found(other.c, 2, 300))

	require.NoError(t, s.Publish(ctx, salt, never))
	require.Equal(t, both, records(t, st), "it is published again")
	r.audit()
	r.closeAll()
	other.closeAll()
}

// An Unpublish that fails half-way can be called again, and leaves nothing then.
func TestUnpublish_Faults(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	behind := store.NewMemory(store.MemoryOptions{})
	cfg := testConfig()
	cfg.Shared = behind
	r := newRig(t, testGeometry(), cfg)
	s, err := r.c.MatchPrefix(salt, nil)
	require.NoError(t, err)
	r.with(s, 1, 600)
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Positive(t, records(t, behind))
	failing := &down{Store: behind}
	r.c.cfg.Shared = failing
	for tries := 0; ; tries++ {
		failing.left = 5 * tries
		err := r.c.Unpublish(ctx, salt, ids(1, 0, 600), 0)
		if err == nil {
			require.Greater(t, tries, 3)
			break
		}
		require.ErrorIs(t, err, quant.ErrUnavailable)
		require.Positive(t, records(t, behind))
	}
	require.Zero(t, records(t, behind))
	r.closeAll()
}

// down is a store that answers some calls and then none.
type down struct {
	store.Store
	left int
}

func (d *down) Get(ctx context.Context, k store.Key) ([]byte, error) {
	if d.left--; d.left < 0 {
		return nil, quant.ErrUnavailable
	}
	return d.Store.Get(ctx, k)
}

func (d *down) Delete(ctx context.Context, k store.Key) error {
	if d.left--; d.left < 0 {
		return quant.ErrUnavailable
	}
	return d.Store.Delete(ctx, k)
}

// A cache with a store of its own parks there, and publishes where prefixes are shared; each has its own, and one does
// not stand for the other.
func TestShared_BesideAStore(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	own, shared := &counted{Store: store.NewMemory(store.MemoryOptions{})}, &counted{Store: store.NewMemory(store.MemoryOptions{})}
	cfg := testConfig()
	cfg.Store, cfg.Shared = own, shared
	r := newRig(t, testGeometry(), cfg)
	cfg.Store = store.NewMemory(store.MemoryOptions{})
	other := newRig(t, testGeometry(), cfg)
	s, err := r.c.MatchPrefix(salt, nil)
	require.NoError(t, err)
	r.with(s, 1, 400)
	id, err := s.Park(ctx, salt, never)
	require.NoError(t, err)
	require.Zero(t, shared.puts)
	o, err := other.c.RecallPrefix(ctx, salt, ids(1, 0, 400))
	require.NoError(t, err)
	require.Zero(t, o.Len(), "what is parked is not shared")
	require.NoError(t, o.Close())

	s, err = r.c.Resume(ctx, salt, id)
	require.NoError(t, err)
	parked := own.puts
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Equal(t, parked, own.puts)
	n := shared.puts
	require.Positive(t, n)
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Equal(t, n, shared.puts, "nothing is new")
	o, err = other.c.RecallPrefix(ctx, salt, ids(1, 0, 400))
	require.NoError(t, err)
	require.EqualValues(t, 320, o.Len())
	require.NoError(t, r.c.Erase(ctx, salt, id, nil))
	require.Zero(t, records(t, own))
	require.Positive(t, records(t, shared))
	require.NoError(t, r.c.Unpublish(ctx, salt, ids(1, 0, 400), 0))
	require.Zero(t, records(t, shared))
	require.NoError(t, o.Publish(ctx, salt, never), "it has it from there, and does not know")
	r.audit()
	r.closeAll()
	other.closeAll()
}

// Where rows are dropped, those of segments that are published go last: they are found as long as anything else is left
// to give.
func TestPublished_DropsLast(t *testing.T) {
	ctx := context.Background()
	for _, shared := range []bool{false, true} {
		cfg := testConfig()
		if shared {
			cfg.Shared = store.NewMemory(store.MemoryOptions{})
		}
		r := newRig(t, testGeometry(), cfg)
		s, err := r.c.MatchPrefix(nil, nil)
		require.NoError(t, err)
		r.with(s, 1, 400)
		if shared {
			require.NoError(t, s.Publish(ctx, nil, never))
		}
		r.with(s, 1, 1000)
		lost := func() bool { // of the first 320 tokens
			n := 0
			for _, g := range s.segs {
				if !g.sinks && g.closed && g.hi() <= 324 && g.complete() {
					n++
				}
			}
			return n < 5
		}
		require.False(t, lost())
		for range 400 {
			if lost() {
				break
			}
			require.NoError(t, s.Demote(0.02))
		}
		require.True(t, lost())
		others := 0
		for _, g := range s.segs {
			if g.closed && g.lo >= 324 && !g.empty() {
				others++
			}
		}
		require.Equal(t, shared, others == 0, "%d other segments have rows", others)
		r.audit()
		r.closeAll()
	}
}
