// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openNameless opens a file without a name in dir. It returns nil if the file system has no
// O_TMPFILE or there is no /proc to link the file by. Messages call the file name.
func openNameless(dir, name string, perm fs.FileMode) *os.File {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(folder(dir), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(perm))
		return err
	})
	if err != nil {
		return nil // opening a file with a name will report the error
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

// linkNameless gives a file without a name the name path. It never replaces a file.
func linkNameless(f *os.File, path string) error {
	err := retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, procName(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return &os.LinkError{Op: "linkat", Old: f.Name(), New: path, Err: err}
	}
	return nil
}

// procName is the path by which the kernel knows an open file.
func procName(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

// retry repeats a system call until no signal interrupts it.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
