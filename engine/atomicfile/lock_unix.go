// SPDX-License-Identifier: Apache-2.0

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// closeToRename reports that an open file can be renamed. It stays locked.
const closeToRename = false

// lock takes the lock that shows that the file's process is alive. It reports false if another
// process holds it. On a file system without locks, lock succeeds: nothing is removed there either,
// because removing needs the lock.
func lock(f *os.File) bool {
	return !errors.Is(flock(f), syscall.EWOULDBLOCK)
}

// flock takes the lock or fails at once. The system releases it when the last descriptor is closed;
// other programs do not inherit ours.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// removeAbandoned removes a temporary file unless a process holds its lock.
func removeAbandoned(path string) {
	if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
		return
	}
	const flags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0) // NFS locks only files that are open for writing
	if err != nil {
		f, err = os.OpenFile(path, os.O_RDONLY|flags, 0)
	}
	if err != nil {
		return
	}
	defer f.Close()
	// Another file may have got this name before the lock was taken.
	if flock(f) == nil && same(f, path) {
		_ = os.Remove(path)
	}
}

// keepOwner gives f the owner and group of the file it replaces, if the process may, and returns
// the mode for f: the old mode, but with the permissions of others for a group that is not the old
// one.
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
