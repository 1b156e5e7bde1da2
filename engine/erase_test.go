// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// talkOf makes a sequence of tokens whose ids and rows are those of a text, after those of a shared beginning.
func (r *rig) talkOf(salt []byte, ids []int32, text uint64) *Sequence {
	s, err := r.c.MatchPrefix(salt, ids)
	require.NoError(r.t, err)
	for s.n < int64(len(ids)) {
		n := min(40, len(ids)-int(s.n))
		st, err := r.c.Begin(context.Background(), []Row{{Seq: s, Tokens: n, IDs: ids[s.n : s.n+int64(n)]}})
		require.NoError(r.t, err)
		for l := range r.geo.Layers {
			k, v, _ := r.tokens(text, s.n, s.n+int64(n), l)
			require.NoError(r.t, st.Append(l, k, v))
		}
		require.NoError(r.t, st.Commit(n))
	}
	return s
}

// What is erased is in no file and no index any more, but for what others share; those go on as they were.
func TestErase(t *testing.T) {
	ctx, salt, dir := context.Background(), []byte("salt"), t.TempDir()
	disk, err := store.OpenDisk(dir, store.DiskOptions{FileBytes: 1 << 18})
	require.NoError(t, err)
	cfg := testConfig()
	cfg.Store = disk
	r := newRig(t, testGeometry(), cfg)
	common := make([]int32, 150)
	own := func(x int32) []int32 {
		ids := append([]int32{}, common...)
		for i := range int32(200) {
			ids = append(ids, 1000*x+i)
		}
		return ids
	}
	a, b := r.talkOf(salt, own(1), 1), r.talkOf(salt, own(2), 2)
	require.EqualValues(t, 3, b.segs[1].refs, "both share the first segments")
	want := r.state(b)
	idA, err := a.Park(ctx, salt, never)
	require.NoError(t, err)
	idB, err := b.Park(ctx, salt, never)
	require.NoError(t, err)

	payloads := map[store.Key][]byte{}
	for x, err := range disk.List(ctx) {
		require.NoError(t, err)
		payloads[x.Key], err = disk.Get(ctx, x.Key)
		require.NoError(t, err)
	}
	shared, err := r.c.Images(ctx, salt, idB)
	require.NoError(t, err)
	require.NotEmpty(t, shared)
	of := map[store.Key]bool{}
	for _, k := range shared {
		of[k] = true
	}
	require.NoError(t, r.c.Erase(ctx, salt, idA, func(k store.Key) bool { return of[k] }))
	require.NoError(t, disk.Scrub(ctx))
	_, err = r.c.Resume(ctx, salt, idA)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, r.c.Erase(ctx, salt, idA, nil), fs.ErrNotExist)

	names, err := filepath.Glob(filepath.Join(dir, "*.kvlog"))
	require.NoError(t, err)
	var files []byte
	for _, name := range names {
		p, err := os.ReadFile(name)
		require.NoError(t, err)
		files = append(files, p...)
	}
	gone := 0
	for k, p := range payloads {
		_, err := disk.Get(ctx, k)
		here := err == nil
		require.Equal(t, here, bytes.Contains(files, p[80:store.SealBytes]), "the bytes of a record are there as long as it is")
		if !here {
			gone++
		}
	}
	require.Greater(t, gone, 5)
	n, err := r.c.ForgetPrefix(salt, own(1))
	require.NoError(t, err)
	require.NotZero(t, n)
	r.audit()
	for name, ids := range map[string][]int32{"a": own(1), "b": own(2)} {
		s, err := r.c.RecallPrefix(ctx, salt, ids)
		require.NoError(t, err)
		if name == "a" {
			require.Less(t, s.Len(), int64(192), "only what was common is found")
		} else {
			require.Greater(t, s.Len(), int64(250))
		}
		require.NoError(t, s.Close())
	}
	b, err = r.c.Resume(ctx, salt, idB)
	require.NoError(t, err)
	require.Equal(t, want, r.state(b))
	require.NoError(t, b.Close())

	require.NoError(t, r.c.Erase(ctx, salt, idB, nil))
	for x, err := range disk.List(ctx) {
		require.NoError(t, err)
		t.Errorf("%s of %d bytes is left", x.Key, x.Bytes)
	}
	_, err = r.c.ForgetPrefix(salt, own(2))
	require.NoError(t, err)
	require.Empty(t, r.c.index.nodes)
	r.audit()
	r.closeAll()
	require.NoError(t, disk.Close())
	_, err = r.c.ForgetPrefix(salt, own(2))
	require.ErrorIs(t, err, quant.ErrClosed)
}

// Prefixes that a sequence holds, or that another text begins with, are not forgotten; those too short for a key
// go with those before them.
func TestForgetPrefix_KeepsWhatIsUsed(t *testing.T) {
	r := newRig(t, testGeometry(), testConfig())
	defer r.closeAll()
	ids := make([]int32, 300)
	s := r.talkOf(nil, ids[:80], 1)
	units := maxUnits
	_, err := fold(s, &units) // segments of 64 and of 12 tokens
	require.NoError(t, err)
	require.Len(t, r.c.index.nodes, 2)
	n, err := r.c.ForgetPrefix(nil, ids[:80])
	require.NoError(t, err)
	require.Zero(t, n, "a sequence holds them")
	require.NoError(t, s.Close())
	n, err = r.c.ForgetPrefix([]byte("other"), ids[:80])
	require.NoError(t, err)
	require.Zero(t, n, "another salt")
	n, err = r.c.ForgetPrefix(nil, ids[:80])
	require.NoError(t, err)
	require.Equal(t, 2, n)
	r.audit()
}
