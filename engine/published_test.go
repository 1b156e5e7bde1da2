// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// counted counts what is put.
type counted struct {
	store.Store
	puts int
}

func (c *counted) Put(ctx context.Context, k store.Key, data []byte, expires time.Time) error {
	c.puts++
	return c.Store.Put(ctx, k, data, expires)
}

// What is published is found by another cache, bit for bit, and the sequence goes on as if nothing had happened.
func TestPublish(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	st := &counted{Store: store.NewMemory(store.MemoryOptions{})}
	cfg := testConfig()
	cfg.Store = st
	r, other := newRig(t, testGeometry(), cfg), newRig(t, testGeometry(), cfg)
	s, err := r.c.MatchPrefix(salt, nil)
	require.NoError(t, err)
	require.NoError(t, s.Publish(ctx, salt, never), "nothing yet")
	require.Zero(t, st.puts)
	r.with(s, 1, 400)
	before := r.state(s)
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Equal(t, before, r.state(s))
	r.audit()
	n := st.puts
	require.Positive(t, n)
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Equal(t, n, st.puts, "nothing is new")
	require.ErrorIs(t, s.Publish(ctx, []byte("two"), never), quant.ErrShape)

	o, err := other.c.RecallPrefix(ctx, salt, ids(1, 0, 400))
	require.NoError(t, err)
	require.EqualValues(t, 320, o.Len())
	require.NoError(t, o.Publish(ctx, salt, never))
	require.Equal(t, n, st.puts, "what was recalled is there")
	r.with(s, 1, 600)
	other.with(o, 1, 600)
	require.NoError(t, s.Publish(ctx, salt, never))
	require.Greater(t, st.puts, n, "what has closed since")
	require.Equal(t, outputs(r.step(s, 1, 20, 20)), outputs(other.step(o, 1, 20, 20)), "to the last bit")
	other.audit()
	r.closeAll()
	other.closeAll()
}

// full is a store that has no room after some puts.
type full struct {
	store.Store
	left int
}

func (f *full) Put(ctx context.Context, k store.Key, data []byte, expires time.Time) error {
	if f.left--; f.left < 0 {
		return syscall.ENOSPC
	}
	return f.Store.Put(ctx, k, data, expires)
}

// A Publish that fails half-way leaves the sequence as it was; what is found of it is right, and it can be made again.
func TestPublish_Faults(t *testing.T) {
	ctx, salt := context.Background(), []byte("one")
	for left := 0; ; left += 3 {
		st := &full{store.NewMemory(store.MemoryOptions{}), left}
		cfg := testConfig()
		cfg.Store = st
		r, other := newRig(t, testGeometry(), cfg), newRig(t, testGeometry(), cfg)
		s, err := r.c.MatchPrefix(salt, nil)
		require.NoError(t, err)
		r.with(s, 1, 300)
		before := r.state(s)
		failed := s.Publish(ctx, salt, never)
		require.Equal(t, before, r.state(s))
		r.audit()
		o, err := other.c.RecallPrefix(ctx, salt, ids(1, 0, 300))
		require.NoError(t, err)
		other.with(o, 1, 300)
		require.Equal(t, outputs(r.step(s, 1, 20, 20)), outputs(other.step(o, 1, 20, 20)))
		st.left = 1 << 20
		require.NoError(t, s.Publish(ctx, salt, never))
		r.closeAll()
		other.closeAll()
		if failed == nil {
			require.Positive(t, left)
			return
		}
		require.ErrorIs(t, failed, syscall.ENOSPC)
	}
}
