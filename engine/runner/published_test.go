// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

// Runners on one store compute the first tokens of prompts once, and answer as if each had computed them; under
// another salt nothing is found.
func TestStore_SharesPrefixes(t *testing.T) {
	m, st := tiny(t), store.NewMemory(store.MemoryOptions{})
	o := runner.Options{Store: st, Cache: engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}}
	a, b, alone := run(t, m, o), run(t, m, o), run(t, m, runner.Options{Cache: o.Cache})
	q := runner.Request{Tokens: ask(t, m, text(600, "the same long beginning ")), MaxTokens: 20, IgnoreEnd: true, Salt: []byte("ours")}
	want, _ := answer(t, alone, q)
	got, res := answer(t, a, q)
	require.Zero(t, res.Cached)
	require.Equal(t, want, got)
	held := st.Held()
	require.Positive(t, held)
	got, res = answer(t, b, q)
	require.Equal(t, want, got)
	require.GreaterOrEqual(t, res.Cached, 512)
	require.Equal(t, held, st.Held(), "it is there once")
	q.Salt = []byte("theirs")
	_, res = answer(t, b, q)
	require.Zero(t, res.Cached)

	held = st.Held()
	q.Tokens, q.Forget = ask(t, m, text(400, "something else ")), true
	answer(t, b, q)
	require.Equal(t, held, st.Held(), "what is to be forgotten is not published")
}

// entries returns what a store lists.
func entries(t *testing.T, st store.Store) (n int) {
	for _, err := range st.List(context.Background()) {
		require.NoError(t, err)
		n++
	}
	return n
}

// A conversation that is forgotten takes from the store what it has published, but for what others of the runner have
// under the salt; also when it was parked, and by a runner that found it in its folder.
func TestForget_Unpublishes(t *testing.T) {
	m, st, ctx := tiny(t), store.NewMemory(store.MemoryOptions{}), context.Background()
	o := runner.Options{Store: st, Cache: engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}, Folder: t.TempDir()}
	r := run(t, m, o)
	begin := text(200, "what both were told ")
	tell := func(seed string, save bool) (id string) {
		_, res := answer(t, r, runner.Request{Tokens: ask(t, m, begin+text(500, seed)), MaxTokens: 8, IgnoreEnd: true, Save: save})
		return res.Conversation
	}
	kept := tell("a thing ", false)
	alone := entries(t, st)
	require.Positive(t, alone)
	for _, save := range []bool{false, true} {
		id := tell("another ", save)
		require.Greater(t, entries(t, st), alone)
		require.NoError(t, r.Forget(ctx, nil, id))
		require.Equal(t, alone, entries(t, st))
	}
	id := tell("another ", true)
	require.NoError(t, r.Close())
	r = run(t, m, o)
	require.Greater(t, entries(t, st), alone, "the store outlives the runner")
	require.NoError(t, r.Forget(ctx, nil, id))
	require.Equal(t, alone, entries(t, st))
	require.NoError(t, r.Forget(ctx, nil, kept))
	require.Zero(t, entries(t, st))
}

// closedOnce is a store that gives nothing up until it is told to.
type closedOnce struct {
	store.Store
	open atomic.Bool
}

func (c *closedOnce) Delete(ctx context.Context, k store.Key) error {
	if !c.open.Load() {
		return quant.ErrUnavailable
	}
	return c.Store.Delete(ctx, k)
}

// What the store does not give up is said, and asked for again.
func TestForget_StoreFails(t *testing.T) {
	m, st, ctx := tiny(t), &closedOnce{Store: store.NewMemory(store.MemoryOptions{})}, context.Background()
	r := run(t, m, runner.Options{Store: st, Cache: engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}})
	_, res := answer(t, r, runner.Request{Tokens: ask(t, m, text(500, "to go ")), MaxTokens: 4, IgnoreEnd: true})
	var still *runner.StillSharedError
	err := r.Forget(ctx, nil, res.Conversation)
	require.ErrorAs(t, err, &still)
	require.ErrorIs(t, err, quant.ErrUnavailable)
	require.ErrorContains(t, err, "the store has its first tokens")
	require.Positive(t, entries(t, st))
	list, err := r.Conversations(ctx, nil)
	require.NoError(t, err)
	require.Empty(t, list, "here it is gone")
	st.open.Store(true)
	require.NoError(t, runner.RetryUnpublish(r))
	require.Zero(t, entries(t, st))
}

// A runner with a folder and a store parks in the one and shares in the other.
func TestStore_BesideAFolder(t *testing.T) {
	m, st := tiny(t), store.NewMemory(store.MemoryOptions{})
	o := runner.Options{Store: st, Cache: engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}, Folder: t.TempDir()}
	a := run(t, m, o)
	q := runner.Request{Tokens: ask(t, m, text(600, "the same long beginning ")), MaxTokens: 20, IgnoreEnd: true, Save: true}
	want, _ := answer(t, a, q)
	other := o
	other.Folder = t.TempDir()
	got, res := answer(t, run(t, m, other), q)
	require.Equal(t, want, got)
	require.GreaterOrEqual(t, res.Cached, 512, "found in the store")
	require.NoError(t, a.Close())

	o.Store = store.NewMemory(store.MemoryOptions{})
	b := run(t, m, o)
	got, res = answer(t, b, q)
	require.Equal(t, want, got)
	require.GreaterOrEqual(t, res.Cached, 512, "found in the folder")
	require.Positive(t, entries(t, o.Store), "and published where it was not yet")
}

// A store that fails and serves wrong bytes costs time, never an answer.
func TestStore_Faults(t *testing.T) {
	m := tiny(t)
	cfg := engine.Config{Budget: 16 << 20, Window: 32, Segment: 64}
	alone := run(t, m, runner.Options{Cache: cfg})
	st := storetest.NewFaulty(store.NewMemory(store.MemoryOptions{}), 5, 0.3)
	for i := range 4 {
		r := run(t, m, runner.Options{Store: st, Cache: cfg})
		for _, s := range []string{"the same long beginning ", "another one "} {
			q := runner.Request{Tokens: ask(t, m, text(300+40*i, s)), MaxTokens: 8, IgnoreEnd: true}
			want, _ := answer(t, alone, q)
			got, _ := answer(t, r, q)
			require.Equal(t, want, got)
		}
	}
	require.Positive(t, st.Faults())
}
