// SPDX-License-Identifier: Apache-2.0

package runner_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine"
	"github.com/kvist-project/kvist/engine/runner"
)

// written returns the bytes of the rows in a folder that are not zero.
func written(t *testing.T, folder string) (n int) {
	names, err := filepath.Glob(filepath.Join(folder, "rows", "*.kvlog"))
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		p, err := os.ReadFile(name)
		require.NoError(t, err)
		for _, b := range p {
			if b != 0 {
				n++
			}
		}
	}
	return n
}

// A conversation that is forgotten leaves nothing in the folder, whatever was parked of it before, but what
// another one shares; and nothing that a prompt finds.
func TestForget_LeavesNothing(t *testing.T) {
	m := tiny(t)
	o := runner.Options{Cache: engine.Config{Budget: 4 << 20, Window: 32, Segment: 64}}
	o.Folder = t.TempDir()
	r := run(t, m, o)
	ctx := context.Background()
	begin := text(200, "what both were told ")
	tell := func(seed string) (q runner.Request, conversation string) {
		q = runner.Request{Tokens: ask(t, m, begin+text(500, seed)), MaxTokens: 8, IgnoreEnd: true, Save: true}
		ids, res := answer(t, r, q)
		q.Tokens = append(q.Tokens, ids...)
		return q, res.Conversation
	}
	_, kept := tell("a thing ")
	alone := written(t, o.Folder)
	q, id := tell("another ")
	both := written(t, o.Folder)
	require.Greater(t, both, alone*3/2)
	q.Tokens = append(q.Tokens, ask(t, m, text(90, " and more "))...) // parked a second time, by what it is now
	_, res := answer(t, r, q)
	require.Equal(t, id, res.Conversation)

	require.NoError(t, r.Forget(ctx, nil, id))
	require.Less(t, written(t, o.Folder), alone*103/100, "headers of what was deleted")
	q.Save = false
	_, res = answer(t, r, q)
	require.Less(t, res.Cached, 256, "what both were told is found, and no more")
	list, err := r.Conversations(ctx, nil)
	require.NoError(t, err)
	for _, c := range list {
		require.NotEqual(t, id, c.ID)
	}
	before, err := r.Describe(ctx, nil, kept)
	require.NoError(t, err)
	require.Len(t, before.Kept, before.Tokens)
	require.NoError(t, r.Forget(ctx, nil, kept))
	require.NoError(t, r.Forget(ctx, nil, res.Conversation))
	require.Less(t, written(t, o.Folder), alone/25, "headers alone")
	_, res = answer(t, r, q)
	require.Zero(t, res.Cached)
}

// What a process was about to erase when it ended goes when the next one begins.
func TestForget_GoesOnAfterACrash(t *testing.T) {
	m := tiny(t)
	o := runner.Options{Cache: engine.Config{Budget: 4 << 20, Window: 32, Segment: 64}}
	o.Folder = t.TempDir()
	r := run(t, m, o)
	_, res := answer(t, r, runner.Request{Tokens: ask(t, m, text(500, "to go ")), MaxTokens: 4, IgnoreEnd: true, Save: true})
	require.NoError(t, r.Close())
	all := written(t, o.Folder)
	runner.MarkErased(t, filepath.Join(o.Folder, "notes", res.Conversation+".json"))
	r = run(t, m, o)
	require.Less(t, written(t, o.Folder), all/20)
	_, err := os.Stat(filepath.Join(o.Folder, "notes", res.Conversation+".json"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	list, err := r.Conversations(context.Background(), nil)
	require.NoError(t, err)
	require.Empty(t, list)
}

// A folder with a limit holds the conversations that were parked last.
func TestPark_FolderIsFull(t *testing.T) {
	m := tiny(t)
	o := parking(t.TempDir())
	o.FolderBytes = 2 << 20
	r := run(t, m, o)
	for i := range 12 {
		_, res := answer(t, r, runner.Request{Tokens: ask(t, m, text(700, string(rune('a'+i))+" words ")), MaxTokens: 8, IgnoreEnd: true,
			Save: true})
		list, err := r.Conversations(context.Background(), nil)
		require.NoError(t, err)
		require.Equal(t, res.Conversation, list[0].ID)
		require.True(t, list[0].Parked)
	}
	list, err := r.Conversations(context.Background(), nil)
	require.NoError(t, err)
	require.Less(t, len(list), 10)
	require.Greater(t, len(list), 1)
	size := int64(0)
	require.NoError(t, filepath.Walk(filepath.Join(o.Folder, "rows"), func(_ string, info fs.FileInfo, err error) error {
		size += info.Size()
		return err
	}))
	require.LessOrEqual(t, size, o.FolderBytes+1<<16)
	names, err := os.ReadDir(filepath.Join(o.Folder, "notes"))
	require.NoError(t, err)
	require.Len(t, names, len(list))
	b, err := os.ReadFile(filepath.Join(o.Folder, "notes", names[0].Name()))
	require.NoError(t, err)
	require.True(t, json.Valid(b))
}

// A salt that fills the cache takes from itself, and not from those that hold little.
func TestTenants_AreFair(t *testing.T) {
	m := tiny(t)
	for _, tenants := range []int{0, 2} {
		o := runner.Options{Tenants: tenants, Cache: engine.Config{Budget: 1200 << 10, Window: 32, Segment: 64}}
		r := run(t, m, o)
		ctx, small := context.Background(), []byte("small")
		_, res := answer(t, r, runner.Request{Tokens: ask(t, m, text(600, "one question ")), MaxTokens: 8, IgnoreEnd: true, Salt: small})
		before, err := r.Describe(ctx, small, res.Conversation)
		require.NoError(t, err)
		for i := range 20 {
			answer(t, r, runner.Request{Tokens: ask(t, m, text(700, string(rune('a'+i))+" words ")), MaxTokens: 8, IgnoreEnd: true,
				Salt: []byte("large")})
		}
		list, err := r.Conversations(ctx, small)
		require.NoError(t, err)
		if tenants == 0 {
			require.True(t, len(list) == 0 || list[0].Bytes < before.Bytes/2)
			continue
		}
		require.Len(t, list, 1)
		require.GreaterOrEqual(t, list[0].Bytes, before.Bytes, "positions may be added")
	}
}
