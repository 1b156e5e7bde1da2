// SPDX-License-Identifier: Apache-2.0

package atomicfile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
)

// creates are the ways to create a file: that of this system, and with a temporary name.
var creates = map[string]func(path string, force bool) (*atomicfile.File, error){
	"system": atomicfile.Create, "named": atomicfile.CreateNamed,
}

// each runs a test for every way, each in its own folder.
func each(t *testing.T, f func(t *testing.T, dir string,
	create func(string, bool) (*atomicfile.File, error))) {
	for name, create := range creates {
		t.Run(name, func(t *testing.T) { f(t, t.TempDir(), create) })
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func write(t *testing.T, path, text string, perm fs.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), perm))
	require.NoError(t, os.Chmod(path, perm))
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

func TestCommit_AppearsWhole(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		path := filepath.Join(dir, "out")
		f, err := create(path, false)
		require.NoError(t, err)
		_, err = f.Write([]byte("half"))
		require.NoError(t, err)
		_, err = os.Stat(path)
		require.ErrorIs(t, err, fs.ErrNotExist, "nothing is visible before Commit")
		require.NoError(t, f.Commit())
		require.NoError(t, f.Abort(), "after Commit, Abort does nothing")
		require.Equal(t, "half", read(t, path))
		require.Equal(t, []string{"out"}, names(t, dir))
		require.ErrorIs(t, f.Commit(), fs.ErrClosed)
	})
}

func TestAbort_LeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		f, err := create(filepath.Join(dir, "out"), false)
		require.NoError(t, err)
		_, err = f.Write(make([]byte, 1000))
		require.NoError(t, err)
		require.NoError(t, f.Abort())
		require.NoError(t, f.Abort())
		require.Empty(t, names(t, dir))
	})
}

func TestCreate_Existing(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		path := filepath.Join(dir, "out")
		write(t, path, "old", 0o600)
		_, err := create(path, false)
		require.ErrorIs(t, err, fs.ErrExist)
		require.ErrorIs(t, atomicfile.Check(path, false), fs.ErrExist)
		require.NoError(t, atomicfile.Check(path, true))
		f, err := create(path, true)
		require.NoError(t, err)
		_, err = f.Write([]byte("new"))
		require.NoError(t, err)
		require.Equal(t, "old", read(t, path), "the old file stays until Commit")
		require.NoError(t, f.Commit())
		require.Equal(t, "new", read(t, path))
		require.Equal(t, []string{"out"}, names(t, dir))
	})
}

// Commit does not replace a file that was created meanwhile, unless force is set.
func TestCommit_Race(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		path := filepath.Join(dir, "out")
		for _, force := range []bool{false, true} {
			f, err := create(path, force)
			require.NoError(t, err)
			_, err = f.Write([]byte("ours"))
			require.NoError(t, err)
			write(t, path, "theirs", 0o600)
			if force {
				require.NoError(t, f.Commit())
				require.Equal(t, "ours", read(t, path))
			} else {
				require.ErrorIs(t, f.Commit(), fs.ErrExist)
				require.Equal(t, "theirs", read(t, path))
			}
			require.Equal(t, []string{"out"}, names(t, dir), "the temporary file is gone")
			require.NoError(t, os.Remove(path))
		}
		f, err := create(path, true)
		require.NoError(t, err)
		require.NoError(t, os.Mkdir(path, 0o777))
		require.ErrorIs(t, f.Commit(), atomicfile.ErrNotRegular)
		require.Equal(t, []string{"out"}, names(t, dir))
	})
}

// A name may be as long as the file system allows, and no longer.
func TestCreate_LongNames(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		for _, n := range []int{237, 250, 255} {
			path := filepath.Join(dir, strings.Repeat("x", n))
			for _, force := range []bool{false, true} {
				f, err := create(path, force)
				require.NoError(t, err, "%d bytes", n)
				require.NoError(t, f.Commit(), "%d bytes", n)
			}
			require.Equal(t, []string{filepath.Base(path)}, names(t, dir))
			require.NoError(t, os.Remove(path))
		}
		_, err := create(filepath.Join(dir, strings.Repeat("x", 256)), false)
		require.Error(t, err, "before the work, not after it")
		require.Empty(t, names(t, dir))
	})
}

// Impossible names, and names that a later run would remove.
func TestCreate_BadNames(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{"", "new/", atomicfile.TempName()} {
		_, err := atomicfile.Create(path, true)
		require.ErrorIs(t, err, fs.ErrInvalid, "%q", path)
	}
	for _, path := range []string{".", "..", "./"} {
		_, err := atomicfile.Create(path, true)
		require.ErrorIs(t, err, atomicfile.ErrNotRegular, "%q", path)
	}
	for _, path := range []string{"none/out", filepath.Join(t.TempDir(), "none", "out")} {
		_, err := atomicfile.Create(path, true)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.NotContains(t, err.Error(), ".tmp")
	}
	f, err := atomicfile.Create("out", false)
	require.NoError(t, err)
	require.NoError(t, f.Commit())
	require.Equal(t, []string{"out"}, names(t, "."))
}

// If a file without a name cannot be linked, a copy replaces it.
func TestCommit_CopyInPlaceOfLink(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		path := filepath.Join(dir, "out")
		f, err := create(path, false)
		require.NoError(t, err)
		if f.Temp() != "" {
			require.NoError(t, f.Abort())
			t.Skip("the file has a name")
		}
		_, err = f.WriteAt([]byte("some bytes"), 1<<20)
		require.NoError(t, err)
		require.NoError(t, f.CopyToTemp(dir+string(filepath.Separator)))
		require.NotEmpty(t, f.Temp())
		require.NoError(t, f.Rename())
		require.Equal(t, strings.Repeat("\x00", 1<<20)+"some bytes", read(t, path))
		require.Equal(t, []string{"out"}, names(t, dir))
	})
}

func TestScratch(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, create := range []func() (*atomicfile.Scratch, error){atomicfile.NewScratch,
		atomicfile.NewNamedScratch} {
		s, err := create()
		require.NoError(t, err)
		_, err = s.WriteAt([]byte("x"), 10)
		require.NoError(t, err)
		b := make([]byte, 11)
		_, err = s.ReadAt(b, 0)
		require.NoError(t, err)
		require.Equal(t, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00x", string(b))
		require.NoError(t, s.Close())
		require.Empty(t, names(t, dir))
	}
	t.Setenv("TMPDIR", filepath.Join(dir, "none"))
	_, err := atomicfile.NewScratch()
	require.ErrorIs(t, err, fs.ErrNotExist)
}
