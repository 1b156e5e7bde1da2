// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openNameless opens a file without a name in dir, or returns nil where there is no such thing: a
// file system without O_TMPFILE, or no /proc to link the file by. Messages call it name.
func openNameless(dir, name string, perm fs.FileMode) *os.File {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(folder(dir), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(perm))
		return err
	})
	if err != nil {
		return nil // what is wrong with the folder shows when a file with a name is made
	}
	f := os.NewFile(uintptr(fd), name)
	a, err := f.Stat()
	if err == nil {
		var b fs.FileInfo
		if b, err = os.Stat(procName(f)); err == nil && os.SameFile(a, b) {
			return f
		}
	}
	_ = f.Close()
	return nil
}

// linkNameless gives a file without a name the name path. It replaces nothing.
func linkNameless(f *os.File, path string) error {
	err := retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, procName(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return &os.LinkError{Op: "linkat", Old: f.Name(), New: path, Err: err}
	}
	return nil
}

// procName is the name by which the kernel knows an open file.
func procName(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

// retry calls a system call until no signal breaks into it.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
