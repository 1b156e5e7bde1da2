// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/gguf"
	"github.com/kvist-project/kvist/engine/gguf/gguftest"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// tiny is a random model with a token for each byte.
func tiny(t testing.TB) *model.Model {
	t.Helper()
	path := t.TempDir() + "/tiny.gguf"
	data := gguftest.Tiny(1).Bytes()
	_, err := gguf.Read(bytes.NewReader(data), int64(len(data)), path, gguf.Limits{})
	require.NoError(t, err)
	require.NoError(t, writeFile(path, data))
	m, err := model.Open(path, model.Options{})
	require.NoError(t, err)
	return m
}

func text(n int, seed string) string { return strings.Repeat(seed, n/len(seed)+1)[:n] }

// A prompt that begins with a conversation goes on from it; one that leaves it, from a copy; and only under
// the same salt.
func TestGenerate_FindsConversations(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Cache: engine.Config{Budget: 16 << 20}})
	first := ask(t, m, text(200, "what was said before, "))
	a, b := []byte("a"), []byte("b")
	q := runner.Request{Tokens: first, MaxTokens: 20, IgnoreEnd: true, Salt: a}
	ids, res := answer(t, r, q)
	require.Zero(t, res.Cached)
	require.Equal(t, runner.FinishLength, res.Finish)
	require.NotEmpty(t, res.Conversation)
	require.Equal(t, exactAnswerIgnoring(t, m, first, 20), ids)

	more := append(append(append([]int32{}, first...), ids...), ask(t, m, "and now?")...)
	q.Tokens = more
	q.Salt = b
	_, res = answer(t, r, q)
	require.Zero(t, res.Cached, "another salt")
	q.Salt = a
	ids2, res2 := answer(t, r, q)
	require.Equal(t, len(first)+19, res2.Cached)
	require.Equal(t, exactAnswerIgnoring(t, m, more, 20), ids2)

	list, err := r.Conversations(context.Background(), a)
	require.NoError(t, err)
	require.Len(t, list, 1)
	q.Tokens = append(append([]int32{}, first[:150]...), ask(t, m, "something else")...)
	ids3, res3 := answer(t, r, q)
	require.Equal(t, 150, res3.Cached, "a copy of the first tokens")
	require.Equal(t, exactAnswerIgnoring(t, m, q.Tokens, 20), ids3)
	list, err = r.Conversations(context.Background(), a)
	require.NoError(t, err)
	require.Len(t, list, 2, "the conversation that was copied is still there")

	_, err = r.Describe(context.Background(), b, list[0].ID)
	require.ErrorIs(t, err, quant.ErrClosed)
	require.ErrorIs(t, r.Forget(context.Background(), b, list[0].ID), quant.ErrClosed)
	require.NoError(t, r.Forget(context.Background(), a, list[0].ID))
	list, err = r.Conversations(context.Background(), a)
	require.NoError(t, err)
	require.Len(t, list, 1)
}

// exactAnswerIgnoring is exactAnswer that goes on behind tokens that end an answer.
func exactAnswerIgnoring(t testing.TB, m *model.Model, prompt []int32, n int) (ids []int32) {
	kv, err := m.NewKV(model.KVOptions{F16: true})
	require.NoError(t, err)
	next, pos := prompt, 0
	for range n {
		logits, err := m.Forward(next, kv, pos, model.ForwardOptions{})
		require.NoError(t, err)
		pos += len(next)
		ids = append(ids, model.Argmax(logits))
		next = ids[len(ids)-1:]
	}
	return ids
}

// Many conversations share a budget that holds few: each gets its answer, the cache keeps its budget, and
// idle conversations go first.
func TestGenerate_ManyInASmallBudget(t *testing.T) {
	m := tiny(t)
	budget := int64(450 << 10)
	r := run(t, m, runner.Options{Running: 6, Chunk: 64, Cache: engine.Config{Budget: budget, Window: 32, Segment: 64}})
	var wg sync.WaitGroup
	n, tokens := 12, 60
	if testing.Short() {
		n, tokens = 8, 30
	}
	for i := range n {
		wg.Go(func() {
			p := ask(t, m, text(120+20*i, string(rune('a'+i))+" few words "))
			ids, res := answer(t, r, runner.Request{Tokens: p, MaxTokens: tokens, IgnoreEnd: true, Salt: []byte{byte(i)}})
			require.Len(t, ids, tokens)
			require.Equal(t, runner.FinishLength, res.Finish)
		})
	}
	wg.Wait()
	c, s, err := r.Stats(context.Background())
	require.NoError(t, err)
	require.LessOrEqual(t, s.PeakBytes, budget)
	require.Equal(t, uint64(n), c.Finished[runner.FinishLength])
	require.Equal(t, uint64(n*tokens), c.AnswerTokens)
	require.NotZero(t, c.Closed+c.Preempted, "the budget was never short: the test shows nothing")
	require.Zero(t, c.Running+c.Waiting)
}

// What cannot be answered fails with an error of its kind, and the runner goes on.
func TestGenerate_Refusals(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Running: 1, Waiting: 1, Context: 400, Cache: engine.Config{Budget: 16 << 20}})
	ctx := context.Background()
	nothing := func(runner.Token) error { return nil }
	for _, c := range []struct {
		q    runner.Request
		want error
	}{
		{runner.Request{}, quant.ErrShape},
		{runner.Request{Tokens: []int32{-1}}, quant.ErrShape},
		{runner.Request{Tokens: []int32{1 << 20}}, quant.ErrShape},
		{runner.Request{Tokens: make([]int32, 400)}, quant.ErrTooLarge},
		{runner.Request{Tokens: []int32{1}, MaxTokens: -1}, quant.ErrShape},
		{runner.Request{Tokens: []int32{1}, Fade: 2}, quant.ErrShape},
		{runner.Request{Tokens: []int32{1}, Sampling: runner.Sampling{Temperature: -1}}, quant.ErrShape},
		{runner.Request{Tokens: []int32{1}, Sampling: runner.Sampling{Alternatives: 100}}, quant.ErrShape},
		{runner.Request{Tokens: []int32{1}, Sampling: runner.Sampling{Bias: map[int32]float32{9999: 1}}}, quant.ErrShape},
	} {
		_, err := r.Generate(ctx, c.q, nothing)
		require.ErrorIs(t, err, c.want)
	}
	hold, release := make(chan struct{}), make(chan struct{})
	errs := make(chan error, 2)
	go func() {
		once := sync.OnceFunc(func() { close(hold); <-release })
		_, err := r.Generate(ctx, runner.Request{Tokens: ask(t, m, "long"), IgnoreEnd: true}, func(runner.Token) error {
			once()
			return nil
		})
		errs <- err
	}()
	<-hold
	waits, leave := context.WithCancel(ctx)
	go func() {
		_, err := r.Generate(waits, runner.Request{Tokens: ask(t, m, "waits")}, nothing)
		errs <- err
	}()
	full := func() bool {
		c, _, err := r.Stats(ctx)
		return err == nil && (c.Waiting == 1 || c.Running == 0)
	}
	require.Eventually(t, full, 5*time.Second, time.Millisecond)
	if c, _, _ := r.Stats(ctx); c.Waiting == 1 { // the long answer is still under way
		_, err := r.Generate(ctx, runner.Request{Tokens: []int32{1}}, nothing)
		if err != nil {
			require.ErrorIs(t, err, quant.ErrFull)
		}
	}
	leave()
	close(release)
	for range 2 {
		if err := <-errs; err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	_, res := answer(t, r, runner.Request{Tokens: ask(t, m, "still there?"), MaxTokens: 3, IgnoreEnd: true})
	require.Equal(t, 3, res.Answer)
}

// An answer ends when emit has enough, fails, or the caller leaves; what was computed is kept.
func TestGenerate_Ends(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Cache: engine.Config{Budget: 16 << 20}})
	q := runner.Request{Tokens: ask(t, m, text(100, "tell me ")), IgnoreEnd: true}
	n := 0
	res, err := r.Generate(context.Background(), q, func(runner.Token) error {
		if n++; n == 5 {
			return runner.ErrStop
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, runner.FinishStop, res.Finish)
	require.Equal(t, 5, n)
	broken := errors.New("the pipe broke")
	_, err = r.Generate(context.Background(), q, func(runner.Token) error { return broken })
	require.ErrorIs(t, err, broken)
	ctx, cancel := context.WithCancel(context.Background())
	_, err = r.Generate(ctx, q, func(runner.Token) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
	_, res = answer(t, r, runner.Request{Tokens: q.Tokens, MaxTokens: 2, IgnoreEnd: true})
	require.Equal(t, len(q.Tokens)-1, res.Cached)

	be := make(chan error, 1)
	go func() {
		_, err := r.Generate(context.Background(), q, func(runner.Token) error { return nil })
		be <- err
	}()
	require.Eventually(t, func() bool {
		c, _, err := r.Stats(context.Background())
		return err == nil && c.Running == 1
	}, 5*time.Second, time.Millisecond)
	require.NoError(t, r.Close())
	require.ErrorIs(t, <-be, quant.ErrClosed)
	_, err = r.Generate(context.Background(), q, func(runner.Token) error { return nil })
	require.ErrorIs(t, err, quant.ErrClosed)
}

// Pinned conversations keep their bits; those with a share or a budget to give up lose some, and it is seen
// which tokens lost them.
func TestConversations_FadeAndPin(t *testing.T) {
	if testing.Short() {
		t.Skip("the other tests run the same goroutines")
	}
	m := tiny(t)
	r := run(t, m, runner.Options{Cache: engine.Config{Budget: 16 << 20, Segment: 64, Window: 32}})
	ctx := context.Background()
	question := ask
	ask := func(seed string, change func(*runner.Request)) runner.Description {
		q := runner.Request{Tokens: ask(t, m, text(500, seed)), MaxTokens: 64, IgnoreEnd: true}
		change(&q)
		_, res := answer(t, r, q)
		d, err := r.Describe(ctx, nil, res.Conversation)
		require.NoError(t, err)
		require.Len(t, d.Kept, d.Tokens)
		require.Len(t, d.Fading, d.Tokens)
		require.Len(t, d.All, d.Tokens)
		require.NotEmpty(t, d.Moments)
		return d
	}
	exact := ask("one ", func(*runner.Request) {})
	for i, k := range exact.Kept {
		require.Equal(t, float32(16), k.Bits, i)
		require.Zero(t, exact.Fading[i])
	}
	faded := ask("two ", func(q *runner.Request) { q.Fade = 0.6 })
	require.InDelta(t, 0.4, float64(faded.Bytes)/float64(exact.Bytes), 0.05)
	lost := 0
	for i, f := range faded.Fading {
		if f.At != 0 {
			lost++
			require.Greater(t, f.Before, faded.Kept[i].Bits)
		}
	}
	require.Greater(t, lost, 100)
	small := ask("three ", func(q *runner.Request) { q.Budget = exact.Bytes / 2 })
	require.LessOrEqual(t, small.Bytes, exact.Bytes*6/10)
	for i := range 40 { // pins take half of the budget at most
		_, err := r.Generate(ctx, runner.Request{Tokens: question(t, m, text(1800, string(rune('a'+i%26))+" pins ")), MaxTokens: 1,
			IgnoreEnd: true, Pin: true, Salt: []byte{byte(i)}}, func(runner.Token) error { return nil })
		if err != nil {
			require.ErrorIs(t, err, quant.ErrFull)
			require.Greater(t, i, 10)
			break
		}
		require.Less(t, i, 39, "everything can be pinned")
	}
	for i := range 40 {
		list, err := r.Conversations(ctx, []byte{byte(i)})
		require.NoError(t, err)
		for _, c := range list {
			require.NoError(t, r.Forget(ctx, []byte{byte(i)}, c.ID))
		}
	}
	pinned := ask("four ", func(q *runner.Request) { q.Pin = true })
	require.True(t, pinned.Pinned)
	require.NoError(t, r.Fade(ctx, nil, pinned.ID, 0.9))
	d, err := r.Describe(ctx, nil, pinned.ID)
	require.NoError(t, err)
	require.Equal(t, pinned.Bytes, d.Bytes)
	require.NoError(t, r.Pin(ctx, nil, pinned.ID, false))
	require.NoError(t, r.Fade(ctx, nil, pinned.ID, 0.5))
	d, err = r.Describe(ctx, nil, pinned.ID)
	require.NoError(t, err)
	require.Less(t, d.Bytes, pinned.Bytes)
}

// Conversations that nobody uses give up what they were told to, once.
func TestConversations_FadeWithTime(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{FadeAfter: time.Millisecond, Fade: 0.5,
		Cache: engine.Config{Budget: 16 << 20, Segment: 64, Window: 32}})
	answer(t, r, runner.Request{Tokens: ask(t, m, text(500, "idle ")), MaxTokens: 4, IgnoreEnd: true})
	require.Eventually(t, func() bool {
		c, _, err := r.Stats(context.Background())
		return err == nil && c.Faded == 1
	}, 10*time.Second, 20*time.Millisecond)
}
