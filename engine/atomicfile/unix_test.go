// SPDX-License-Identifier: Apache-2.0

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package atomicfile_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/atomicfile"
)

// childDir makes the test binary the child of TestKill. Its value is the folder to write to, a
// comma, and a key of creates.
const childDir = "KVIST_ATOMICFILE_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childDir); what != "" {
		dir, how, _ := strings.Cut(what, ",")
		child(filepath.Join(dir, "out"), creates[how])
	}
	os.Exit(m.Run())
}

// child replaces a file repeatedly. It prints "ready" first.
func child(path string, create func(string, bool) (*atomicfile.File, error)) {
	fmt.Println("ready")
	for i := range 1 << 30 {
		f, err := create(path, true)
		if err != nil {
			panic(err)
		}
		for range 16 {
			_, err = f.Write([]byte(strings.Repeat(string(rune('a'+i%26)), 1<<10)))
			if err != nil {
				panic(err)
			}
		}
		if err := f.Commit(); err != nil {
			panic(err)
		}
	}
}

// TestKill kills thirty processes at random times. The next run removes the temporary files that
// they left, but not that of a living process. The output is always complete.
func TestKill_NextRunSweeps(t *testing.T) {
	left := 0
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		live, err := atomicfile.CreateNamed(filepath.Join(dir, "live"), false)
		require.NoError(t, err)
		path := filepath.Join(dir, "out")
		for range 30 {
			kill(t, dir, t.Name()[strings.LastIndex(t.Name(), "/")+1:])
			left += max(0, len(names(t, dir))-2)
			if b, err := os.ReadFile(path); err == nil {
				require.Len(t, b, 16<<10)
				require.Equal(t, strings.Repeat(string(b[:1]), len(b)), string(b))
			}
			f, err := create(path, true)
			require.NoError(t, err)
			require.NoError(t, f.Abort())
			require.Subset(t, []string{filepath.Base(live.Temp()), "out"}, names(t, dir))
			require.FileExists(t, live.Temp(), "a file of a process that lives stays")
		}
		require.NoError(t, live.Commit())
		require.Equal(t, []string{"live", "out"}, names(t, dir))
	})
	require.NotZero(t, left, "no kill left a temporary file: the test tests nothing")
}

// kill starts a child and kills it at a random time.
func kill(t *testing.T, dir, how string) {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childDir+"="+dir+","+how)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	time.Sleep(time.Duration(rand.N(int64(20 * time.Millisecond))))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
}

// A sweep removes only regular files with temporary names that no process has locked.
func TestSweep_NothingElse(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	keep := []string{".kvist-.tmp", ".kvist-0123456789abcdeg.tmp", ".kvist-0123456789abcdef0.tmp",
		".kvist-0123456789ABCDEF.tmp", "kvist-0123456789abcdef.tmp", ".out.kvist-123.tmp",
		".kvist-0123456789abcdef.tmp.kvist"}
	for _, n := range keep {
		write(t, in(n), "x", 0o600)
	}
	folder, fifo, link := atomicfile.TempName(), atomicfile.TempName(), atomicfile.TempName()
	require.NoError(t, os.Mkdir(in(folder), 0o777))
	require.NoError(t, syscall.Mkfifo(in(fifo), 0o600))
	require.NoError(t, os.Symlink(in(keep[0]), in(link)))
	keep = append(keep, folder, fifo, link)
	var gone []string
	for _, perm := range []fs.FileMode{0o600, 0o400, 0o644} {
		gone = append(gone, atomicfile.TempName())
		write(t, in(gone[len(gone)-1]), "x", perm)
	}
	f, err := atomicfile.Create(in("out"), false)
	require.NoError(t, err)
	require.NoError(t, f.Abort())
	require.ElementsMatch(t, keep, names(t, dir), "%v were to go", gone)
}

// withUmask runs f under a umask. The umask belongs to the whole process.
func withUmask(mask int, f func()) {
	defer syscall.Umask(syscall.Umask(mask))
	f()
}

func TestMode_NewFile(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		for mask, want := range map[int]fs.FileMode{0o022: 0o644, 0o077: 0o600, 0o027: 0o640,
			0o002: 0o664, 0: 0o666, 0o777: 0} {
			path := filepath.Join(dir, fmt.Sprintf("%o", mask))
			withUmask(mask, func() {
				f, err := create(path, false)
				require.NoError(t, err)
				if f.Temp() != "" {
					st, err := os.Stat(f.Temp())
					require.NoError(t, err)
					require.Equal(t, fs.FileMode(0o600), st.Mode(), "private until it is whole")
				}
				require.NoError(t, f.Commit())
			})
			st, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, want, st.Mode(), "umask %o", mask)
		}
	})
}

func TestMode_KeptOnReplace(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		for _, perm := range []fs.FileMode{0o600, 0o666, 0o640, 0o755, 0o400} {
			path := filepath.Join(dir, fmt.Sprintf("%o", perm))
			write(t, path, "old", perm)
			f, err := create(path, true)
			require.NoError(t, err)
			st, err := f.Stat()
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o600), st.Mode(), "private until it is whole")
			require.NoError(t, f.Commit())
			st, err = os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, perm, st.Mode())
		}
	})
}

// A replaced file keeps its owner and group, if the process may set them.
func TestMode_OwnerKept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("another owner needs root")
	}
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		path := filepath.Join(dir, "out")
		write(t, path, "old", 0o640)
		require.NoError(t, os.Chown(path, 12345, 54321))
		f, err := create(path, true)
		require.NoError(t, err)
		require.NoError(t, f.Commit())
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o640), st.Mode())
		sys := st.Sys().(*syscall.Stat_t)
		require.Equal(t, []uint32{12345, 54321}, []uint32{sys.Uid, sys.Gid})
	})
}

// A link stays a link: its target is written, whatever kind of link it is.
func TestLinks(t *testing.T) {
	each(t, func(t *testing.T, dir string, create func(string, bool) (*atomicfile.File, error)) {
		in := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
		for _, d := range []string{"links", "data", "data/deep"} {
			require.NoError(t, os.Mkdir(in(d), 0o777))
		}
		require.NoError(t, os.Symlink("data/deep", in("short"))) // short/.. is data
		for _, x := range [][2]string{{"relative", "../data/a"}, {"absolute", in("data", "b")},
			{"twice", "relative"}, {"dangling", "../data/new"}, {"folder", "../short/../c"}} {
			link, to := x[0], x[1]
			path, target := in("links", link), in("data", filepath.Base(to))
			if link == "twice" {
				target = in("data", "a")
			}
			require.NoError(t, os.Symlink(to, path))
			if link != "dangling" {
				write(t, target, "old", 0o600)
			}
			_, err := create(path, false)
			require.ErrorIs(t, err, fs.ErrExist, link)
			f, err := create(path, true)
			require.NoError(t, err, link)
			_, err = f.Write([]byte(link))
			require.NoError(t, err)
			require.NoError(t, f.Commit(), link)
			st, err := os.Lstat(path)
			require.NoError(t, err)
			require.NotZero(t, st.Mode()&fs.ModeSymlink, "%s is no link any more", link)
			require.Equal(t, link, read(t, target), link)
		}
		require.Equal(t, []string{"a", "b", "c", "deep", "new"}, names(t, in("data")))
		require.NoError(t, os.Symlink("loop", in("loop")))
		_, err := create(in("loop"), true)
		require.Error(t, err)
		// The folder of the output is where the system says it is.
		f, err := create(in("short")+"/../d", false)
		require.NoError(t, err)
		require.NoError(t, f.Commit())
		require.FileExists(t, in("data", "d"))
	})
}

// A path that is not a regular file is neither replaced nor opened for reading.
func TestNotRegular(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(in("folder"), 0o777))
	require.NoError(t, syscall.Mkfifo(in("fifo"), 0o600))
	t.Chdir(dir) // names of sockets are short
	l, err := net.Listen("unix", "socket")
	require.NoError(t, err)
	defer l.Close()
	for name, kind := range map[string]string{"folder": "a folder", "fifo": "a FIFO",
		"socket": "a socket", "/dev/null": "a device"} {
		link := in("to-" + filepath.Base(name))
		require.NoError(t, os.Symlink(name, link))
		for _, path := range []string{name, link} {
			for _, force := range []bool{false, true} {
				_, err := atomicfile.Create(path, force)
				require.ErrorIs(t, err, atomicfile.ErrNotRegular, path)
				require.ErrorContains(t, err, kind)
			}
			start := time.Now()
			_, _, err := atomicfile.OpenRegular(path)
			require.ErrorIs(t, err, atomicfile.ErrNotRegular, path)
			require.ErrorContains(t, err, kind)
			require.Less(t, time.Since(start), 5*time.Second)
		}
	}
	write(t, in("file"), "text", 0o600)
	f, st, err := atomicfile.OpenRegular("file")
	require.NoError(t, err)
	require.Equal(t, int64(4), st.Size())
	require.NoError(t, f.Close())
	_, _, err = atomicfile.OpenRegular("none")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// Create reports a folder that cannot be written to, without the temporary name.
func TestCreate_NotWritable(t *testing.T) {
	dir := "/proc/self"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no folder that nobody can write to")
	}
	_, err := atomicfile.Create(dir+"/out", false)
	require.Error(t, err)
	require.NotContains(t, err.Error(), ".tmp")
}

// Processes that write to one folder at the same time do not remove each other's files.
func TestSweep_Concurrent(t *testing.T) {
	dir := t.TempDir()
	done := make(chan error)
	for i := range 8 {
		go func() {
			for j := range 30 {
				f, err := atomicfile.CreateNamed(filepath.Join(dir, fmt.Sprintf("%d-%d", i, j)), false)
				if err == nil {
					err = f.Commit()
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		require.NoError(t, <-done)
	}
	require.Len(t, names(t, dir), 240)
}
