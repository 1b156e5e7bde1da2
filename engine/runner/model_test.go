// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// open loads a test model, or skips.
func open(t testing.TB, find func() (string, error), name string) *model.Model {
	t.Helper()
	if testing.Short() {
		t.Skip("a real model takes seconds: not with -short")
	}
	if name == "gemma" && !strings.Contains(os.Getenv("KVIST_REQUIRE"), name) {
		t.Skip("the second model takes ten seconds: only where KVIST_REQUIRE names it")
	}
	path, err := find()
	if errors.Is(err, quant.ErrUnavailable) && !strings.Contains(os.Getenv("KVIST_REQUIRE"), name) {
		t.Skip(err)
	}
	require.NoError(t, err)
	m, err := model.Open(path, model.Options{})
	require.NoError(t, err)
	return m
}

func run(t testing.TB, m *model.Model, o runner.Options) *runner.Runner {
	t.Helper()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	r, err := runner.New(m, be, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, r.Close())
		require.NoError(t, be.Close())
	})
	return r
}

// exactAnswer is the greedy answer over the uncompressed cache, in binary16.
func exactAnswer(t testing.TB, m *model.Model, prompt []int32, n int) (answer []int32) {
	t.Helper()
	kv, err := m.NewKV(model.KVOptions{F16: true})
	require.NoError(t, err)
	next, pos := prompt, 0
	for range n {
		logits, err := m.Forward(next, kv, pos, model.ForwardOptions{})
		require.NoError(t, err)
		pos += len(next)
		id := model.Argmax(logits)
		if m.Tokenizer().IsEnd(id) {
			break
		}
		answer, next = append(answer, id), []int32{id}
	}
	return answer
}

func ask(t testing.TB, m *model.Model, content string) []int32 {
	t.Helper()
	if m.Tokenizer().Chat == "" { // a model that was not trained to chat
		p, err := m.Tokenizer().Start(content, false)
		require.NoError(t, err)
		return p
	}
	p, err := runner.Prompt(m.Tokenizer(), []model.Message{{Role: "user", Content: content}})
	require.NoError(t, err)
	return p
}

func answer(t testing.TB, r *runner.Runner, q runner.Request) ([]int32, runner.Result) {
	t.Helper()
	var ids []int32
	res, err := r.Generate(context.Background(), q, func(t runner.Token) error {
		ids = append(ids, t.ID)
		return nil
	})
	require.NoError(t, err)
	require.Len(t, ids, res.Answer)
	return ids, res
}

// With a budget that holds everything, greedy answers are those of the exact cache, token for token, also
// when several are computed at once and when a conversation goes on.
func TestGenerate_ExactWithinTheBudget(t *testing.T) {
	for _, c := range []struct {
		name string
		find func() (string, error)
	}{{"model", model.Find}, {"gemma", model.FindGemma}} {
		t.Run(c.name, func(t *testing.T) {
			m := open(t, c.find, c.name)
			r := run(t, m, runner.Options{Chunk: 48,
				Cache: engine.Config{Budget: 4 * runner.ExactBytes(m, 1024)}})
			questions := []string{"What is the capital of France?", "Name three colours.",
				"Write one sentence about the sea. " + strings.Repeat("It should be short and calm. ", 12)}
			got := make([][]int32, len(questions))
			t.Run("together", func(t *testing.T) {
				for i, q := range questions {
					t.Run("", func(t *testing.T) {
						t.Parallel()
						got[i], _ = answer(t, r, runner.Request{Tokens: ask(t, m, q), MaxTokens: 16})
					})
				}
			})
			for i, q := range questions {
				require.Equal(t, exactAnswer(t, m, ask(t, m, q), 16), got[i], q)
			}
			first := ask(t, m, questions[0])
			more, err := m.Tokenizer().Continue(" and", false)
			require.NoError(t, err)
			second := append(append(first, got[0]...), more...)
			ids, res := answer(t, r, runner.Request{Tokens: second, MaxTokens: 8})
			require.Equal(t, exactAnswer(t, m, second, 8), ids)
			require.Greater(t, res.Cached, len(first)-1, "the conversation is found again")
		})
	}
}
