// SPDX-License-Identifier: Apache-2.0

package atomicfile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
)

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestCommit_AppearsWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := atomicfile.Create(path, false)
	require.NoError(t, err)
	_, err = f.Write([]byte("half"))
	require.NoError(t, err)
	_, err = os.Stat(path)
	require.ErrorIs(t, err, fs.ErrNotExist, "nothing is visible before Commit")
	require.NoError(t, f.Commit())
	require.NoError(t, f.Abort(), "after Commit, Abort does nothing")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "half", string(b))
	require.Equal(t, []string{"out"}, names(t, dir))
	require.ErrorIs(t, f.Commit(), fs.ErrClosed)
}

func TestAbort_LeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := atomicfile.Create(filepath.Join(dir, "out"), false)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, f.Abort())
	require.NoError(t, f.Abort())
	require.Empty(t, names(t, dir))
}

func TestCreate_Existing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	_, err := atomicfile.Create(path, false)
	require.ErrorIs(t, err, fs.ErrExist)
	f, err := atomicfile.Create(path, true)
	require.NoError(t, err)
	_, err = f.Write([]byte("new"))
	require.NoError(t, err)
	require.NoError(t, f.Commit())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(b))
}

// A file that comes into being while ours is written is not replaced.
func TestCommit_Race(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	f, err := atomicfile.Create(path, false)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("theirs"), 0o600))
	require.ErrorIs(t, f.Commit(), fs.ErrExist)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "theirs", string(b))
	require.Equal(t, []string{"out"}, names(t, dir), "the temporary file is gone")
}

func TestCreate_NoFolder(t *testing.T) {
	_, err := atomicfile.Create(filepath.Join(t.TempDir(), "none", "out"), true)
	require.ErrorIs(t, err, fs.ErrNotExist)
}
