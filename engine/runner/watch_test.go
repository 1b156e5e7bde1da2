// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"context"
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// A model whose logits are no numbers gives an error, not the first token of its vocabulary.
func TestGenerate_NotANumber(t *testing.T) {
	path := t.TempDir() + "/nan.gguf"
	data := gguftest.Tiny(1).Bytes()
	binary.LittleEndian.PutUint32(data[len(data)-4:], math.Float32bits(float32(math.NaN()))) // the last weight
	require.NoError(t, writeFile(path, data))
	m, err := model.Open(path, model.Options{})
	require.NoError(t, err)
	r := run(t, m, runner.Options{Cache: engine.Config{Budget: 1 << 20}})
	for _, temperature := range []float64{0, 1} {
		q := runner.Request{Tokens: ask(t, m, "a"), MaxTokens: 3, Sampling: runner.Sampling{Temperature: temperature}}
		_, err = r.Generate(context.Background(), q, func(runner.Token) error { t.Error("a token"); return nil })
		require.ErrorContains(t, err, "log probability of NaN")
		require.ErrorIs(t, err, quant.ErrRange)
	}
	require.NoError(t, r.Health(context.Background()))
}

// Who watches a conversation does not put off what keeps it within its budget.
func TestDescribe_BudgetIsKept(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Chunk: 16, Cache: engine.Config{Budget: 4 << 20, Window: 32, Segment: 64}})
	ctx := context.Background()
	q := runner.Request{Tokens: ask(t, m, text(500, "watched all the time ")), MaxTokens: 200, IgnoreEnd: true, Budget: 100 << 10}
	most := int64(0)
	_, err := r.Generate(ctx, q, func(runner.Token) error {
		list, err := r.Conversations(ctx, nil)
		if err != nil {
			return err
		}
		most = max(most, list[0].Bytes)
		_, err = r.Describe(ctx, nil, list[0].ID)
		return err
	})
	require.NoError(t, err)
	require.Less(t, most, q.Budget+q.Budget/4)
}

// An idle pinned conversation is the last to give, but it gives: answers under way are not refused for it.
func TestGenerate_PinsDoNotStarve(t *testing.T) {
	m := tiny(t)
	for _, folder := range []string{"", t.TempDir()} {
		o := runner.Options{Cache: engine.Config{Budget: 450 << 10, Window: 32, Segment: 64}, Folder: folder, Context: 2048}
		r := run(t, m, o)
		ctx := context.Background()
		prompt := ask(t, m, text(500, "pinned and quiet "))
		q := runner.Request{Tokens: prompt, MaxTokens: 4, IgnoreEnd: true, Pin: true}
		ids, res := answer(t, r, q)
		exact, err := r.Describe(ctx, nil, res.Conversation)
		require.NoError(t, err)
		long := runner.Request{Tokens: ask(t, m, text(1800, "of another ")), MaxTokens: 20, IgnoreEnd: true, Salt: []byte("another")}
		answer(t, r, long)
		c, _, err := r.Stats(ctx)
		require.NoError(t, err)
		require.Equal(t, folder == "", c.Loosened > 0)
		list, err := r.Conversations(ctx, nil)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, folder != "", list[0].Parked)
		if folder != "" { // what is pinned and parked comes back as it was, pinned
			long.Forget = true
			answer(t, r, long)
			d, err := r.Describe(ctx, nil, list[0].ID)
			require.NoError(t, err)
			require.True(t, d.Pinned)
			require.Equal(t, exact.Bytes, d.Bytes)
			continue
		}
		require.Less(t, list[0].Bytes, exact.Bytes)
		q.Tokens = append(append(prompt, ids...), 1, 2, 3)
		_, res = answer(t, r, q)
		require.Equal(t, len(prompt)+3, res.Cached)
	}
}

// A pinned conversation that outgrows the cache gets an error, and then keeps nobody out.
func TestGenerate_PinDoesNotFit(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Cache: engine.Config{Budget: 450 << 10, Window: 32, Segment: 64}})
	ctx := context.Background()
	none := func(runner.Token) error { return nil }
	q := runner.Request{Tokens: ask(t, m, text(1200, "pinned and long ")), MaxTokens: 20, IgnoreEnd: true, Pin: true}
	_, err := r.Generate(ctx, q, none)
	require.ErrorIs(t, err, quant.ErrFull)
	list, err := r.Conversations(ctx, nil)
	require.NoError(t, err)
	for _, c := range list {
		require.False(t, c.Pinned)
	}
	answer(t, r, runner.Request{Tokens: ask(t, m, text(300, "of another ")), MaxTokens: 20, IgnoreEnd: true, Salt: []byte("another")})
}
