// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
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

	o.Folder = t.TempDir()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	defer be.Close()
	_, err = runner.New(m, be, o)
	require.ErrorIs(t, err, quant.ErrShape)
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
