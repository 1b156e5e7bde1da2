// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

// A conversation whose note cannot be written is still there, with its rows.
func TestPark_NoteCannotBeWritten(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	r := run(t, m, parking(folder))
	p := ask(t, m, text(300, "not to be lost "))
	_, res := answer(t, r, runner.Request{Tokens: p, MaxTokens: 4, IgnoreEnd: true})
	notes := filepath.Join(folder, "notes")
	require.NoError(t, os.Remove(notes))
	require.Error(t, r.Park(context.Background(), nil, res.Conversation))
	require.NoError(t, os.Mkdir(notes, 0o700))
	_, again := answer(t, r, runner.Request{Tokens: append(p, 9), MaxTokens: 2, IgnoreEnd: true})
	require.Equal(t, len(p), again.Cached)
	require.NoError(t, r.Park(context.Background(), nil, again.Conversation))
}

// What a cache of other settings cannot read stays in the folder for one that can.
func TestPark_OtherSettings(t *testing.T) {
	m := tiny(t)
	folder, copied := t.TempDir(), t.TempDir()
	p := ask(t, m, text(300, "kept for others "))
	ids, _ := answer(t, run(t, m, parking(folder)), runner.Request{Tokens: p, MaxTokens: 4, IgnoreEnd: true, Save: true})
	p = append(p, ids...)
	require.NoError(t, os.CopyFS(copied, os.DirFS(folder)))
	o := parking(copied)
	o.Cache.Window = 64
	other := run(t, m, o)
	_, res := answer(t, other, runner.Request{Tokens: append(p, 1), MaxTokens: 2, IgnoreEnd: true})
	require.Zero(t, res.Cached)
	require.NoError(t, other.Close()) // parks its own beside it

	_, res = answer(t, run(t, m, parking(copied)), runner.Request{Tokens: append(p, 1, 2), MaxTokens: 2, IgnoreEnd: true})
	require.Equal(t, len(p)-1, res.Cached)
}

// A conversation that goes on twice at a time from where it was saved becomes two.
func TestResume_TwiceAtATime(t *testing.T) {
	m := tiny(t)
	r := run(t, m, parking(t.TempDir()))
	p := ask(t, m, text(200, "two go on from here "))
	ids, saved := answer(t, r, runner.Request{Tokens: p, MaxTokens: 2, IgnoreEnd: true, Save: true})
	p = append(p, ids...)
	p = p[:len(p):len(p)]
	var second runner.Result
	first, err := r.Generate(context.Background(), runner.Request{Tokens: append(p, 1, 2), MaxTokens: 300, IgnoreEnd: true},
		func(runner.Token) error {
			if second.Conversation == "" {
				_, second = answer(t, r, runner.Request{Tokens: append(p, 3, 4), MaxTokens: 2, IgnoreEnd: true})
			}
			return nil
		})
	require.NoError(t, err)
	require.Equal(t, len(p)-1, second.Cached)
	require.Equal(t, saved.Conversation, first.Conversation)
	require.NotEqual(t, first.Conversation, second.Conversation)
}

// A conversation that the cache cannot hold does not stop prompts that begin as it does.
func TestResume_TooLarge(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	o := parking(folder)
	o.Cache.Budget = 4 << 20
	p := ask(t, m, text(1800, "larger than the other cache "))
	a := run(t, m, o)
	_, large := answer(t, a, runner.Request{Tokens: p, MaxTokens: 2, IgnoreEnd: true})
	require.NoError(t, a.Close())
	o.Cache.Budget = 330 << 10
	b := run(t, m, o)
	_, res := answer(t, b, runner.Request{Tokens: append(p[:100:100], 7), MaxTokens: 2, IgnoreEnd: true})
	require.Zero(t, res.Cached)
	ctx := context.Background()
	_, err := b.Describe(ctx, nil, large.Conversation)
	require.ErrorIs(t, err, quant.ErrFull)
	require.ErrorIs(t, b.Forget(ctx, []byte("another's"), large.Conversation), quant.ErrClosed)
	require.NoError(t, b.Forget(ctx, nil, large.Conversation), "what is parked can be forgotten all the same")
	require.ErrorIs(t, b.Forget(ctx, nil, large.Conversation), quant.ErrClosed)
}

// A damaged note is not believed: its tokens say what the rows stand for.
func TestNote_Damaged(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	a := run(t, m, parking(folder))
	p := append(ask(t, m, text(100, "b")), 77, 77)
	_, res := answer(t, a, runner.Request{Tokens: p, MaxTokens: 2, IgnoreEnd: true, Save: true})
	require.NoError(t, a.Close())
	path := filepath.Join(folder, "notes", res.Conversation+".json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	before, tokens, ok := bytes.Cut(b, []byte(`"tokens":[`)) // what stands before may be any number
	require.True(t, ok)
	at := bytes.Index(tokens, []byte("77,77"))
	require.Positive(t, at)
	tokens[at+1]++
	require.NoError(t, os.WriteFile(path, bytes.Join([][]byte{before, tokens}, []byte(`"tokens":[`)), 0o600))
	list, err := run(t, m, parking(folder)).Conversations(context.Background(), nil)
	require.NoError(t, err)
	require.Empty(t, list)
}

// What was said goes with its rows, after 30 days.
func TestNote_Expires(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	a := run(t, m, parking(folder))
	_, res := answer(t, a, runner.Request{Tokens: ask(t, m, "of last month"), MaxTokens: 2, IgnoreEnd: true, Save: true})
	require.NoError(t, a.Close())
	path := filepath.Join(folder, "notes", res.Conversation+".json")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var n struct{ Parked time.Time }
	require.NoError(t, json.Unmarshal(b, &n))
	day := func(t time.Time) []byte { return []byte(`"parked":"` + t.Format(time.DateOnly)) }
	b = bytes.Replace(b, day(n.Parked), day(n.Parked.AddDate(0, 0, -32)), 1)
	b = regexp.MustCompile(`"crc32c":\d+`).ReplaceAll(bytes.TrimSpace(b), []byte(`"crc32c":0`))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	b = bytes.Replace(b, []byte(`"crc32c":0`), fmt.Appendf(nil, `"crc32c":%d`, sum), 1)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	run(t, m, parking(folder))
	require.NoFileExists(t, path)
}

// What is to be forgotten is not parked when the runner ends before the answer.
func TestClose_Forgets(t *testing.T) {
	m := tiny(t)
	folder := t.TempDir()
	r := run(t, m, parking(folder))
	ended := make(chan error, 1)
	_, err := r.Generate(context.Background(), runner.Request{Tokens: ask(t, m, text(200, "a secret ")), IgnoreEnd: true,
		Forget: true}, func(runner.Token) error {
		if len(ended) == 0 {
			ended <- r.Close()
		}
		return nil
	})
	require.True(t, err == nil || errors.Is(err, quant.ErrClosed), err)
	require.NoError(t, <-ended)
	left, err := os.ReadDir(filepath.Join(folder, "notes"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// An answer that was not kept names no conversation.
func TestGenerate_NothingKept(t *testing.T) {
	m := tiny(t)
	r := run(t, m, runner.Options{Idle: -1, Cache: parking("").Cache})
	_, res := answer(t, r, runner.Request{Tokens: ask(t, m, "a"), MaxTokens: 2, IgnoreEnd: true})
	require.Empty(t, res.Conversation)
}
