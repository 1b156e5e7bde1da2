// SPDX-License-Identifier: Apache-2.0

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// closeToRename says that an open file cannot be renamed. Here it can, and stays locked meanwhile.
const closeToRename = false

// lock takes the lock on a file that says that its process lives. It reports false where another
// process has it. File systems without locks have nobody who sweeps either: nothing is swept there
// but under the lock.
func lock(f *os.File) bool {
	return !errors.Is(flock(f), syscall.EWOULDBLOCK)
}

// flock takes the lock or fails at once. The lock goes when the last descriptor is closed: ours, as
// it is not handed on to other programs.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// removeAbandoned removes a temporary file unless a process holds the lock on it.
func removeAbandoned(path string) {
	if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
		return
	}
	const flags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0) // NFS locks only what may be written to
	if err != nil {
		f, err = os.OpenFile(path, os.O_RDONLY|flags, 0)
	}
	if err != nil {
		return
	}
	defer f.Close()
	// The name may have become that of another file before the lock was taken.
	if flock(f) == nil && same(f, path) {
		_ = os.Remove(path)
	}
}

// keepOwner gives f the owner and group of the file it replaces, where the process may do that, and
// returns the mode that f is to have: that of the old file, but with a group that is not the old
// one's no more for it than for everybody.
func keepOwner(f *os.File, old fs.FileInfo) fs.FileMode {
	mode := old.Mode().Perm()
	st, err := f.Stat()
	if err != nil {
		return mode &^ 0o077
	}
	was, ok := old.Sys().(*syscall.Stat_t)
	is, ok2 := st.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || was.Uid == is.Uid && was.Gid == is.Gid {
		return mode
	}
	if f.Chown(int(was.Uid), int(was.Gid)) == nil || was.Gid == is.Gid ||
		f.Chown(-1, int(was.Gid)) == nil {
		return mode
	}
	return mode&^0o070 | mode&0o007<<3&mode
}
