// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNotRegular means that a path is not a regular file. Errors that match it are *NotRegularError.
var ErrNotRegular = errors.New("not a regular file")

// errLinks means that symbolic links form a cycle.
var errLinks = errors.New("too many symbolic links")

// maxLinks is the largest number of symbolic links to follow, as on Linux.
const maxLinks = 40

// NotRegularError names a path that is not a regular file. It matches ErrNotRegular.
type NotRegularError struct {
	Path string
	Kind string // what the path is: "a folder", "a device", "a FIFO", "a socket" or "something else"
}

func errNotRegular(path string, mode fs.FileMode) error {
	kind := "something else"
	switch {
	case mode.IsDir():
		kind = "a folder"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return &NotRegularError{Path: path, Kind: kind}
}

// Error names the path and what it is.
func (e *NotRegularError) Error() string {
	return fmt.Sprintf("%s is %s, not a regular file", e.Path, e.Kind)
}

// Unwrap makes the error match ErrNotRegular.
func (e *NotRegularError) Unwrap() error { return ErrNotRegular }

// Check returns the error that Create would return for what exists at path. It changes nothing.
//
// Errors: ErrNotRegular for a folder, a device, a FIFO or a socket, or a link to one; fs.ErrExist
// for an existing file without force; fs.ErrInvalid for an impossible name or a temporary name of
// this package; those of the file system.
func Check(path string, force bool) error {
	if _, _, err := resolve(path, force); err != nil {
		return fmt.Errorf("kvist/atomicfile: create %s: %w", path, err)
	}
	return nil
}

// OpenRegular opens a regular file for reading. It refuses anything else without opening it:
// opening a FIFO would block.
//
// Errors: ErrNotRegular; those of the file system.
func OpenRegular(path string) (*os.File, fs.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, errNotRegular(path, st.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
		err = errNotRegular(path, st.Mode())
	}
	if err != nil {
		_ = f.Close() // report the first error
		return nil, nil, err
	}
	return f, st, nil
}

// split cuts a path before its last element. Unlike filepath.Dir it does not clean the folder:
// "link/.." is not the folder that holds link.
func split(path string) (dir, base string) { return filepath.Split(path) }

// folder returns a path to open for a dir returned by split.
func folder(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

// resolve follows symbolic links from path. It returns the path that Create makes or replaces, and
// the file that exists there.
func resolve(path string, force bool) (target string, old fs.FileInfo, err error) {
	_, base := split(path)
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return "", nil, errNotRegular(path, st.Mode())
	}
	if base == "" || base == "." || base == ".." || isTemp(base) {
		return "", nil, fs.ErrInvalid
	}
	for range maxLinks {
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			dir, _ := split(path)
			_, err := os.Stat(folder(dir))
			return path, nil, err
		}
		if err != nil {
			return "", nil, err
		}
		if !force {
			return "", nil, fs.ErrExist
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			return path, st, nil
		}
		to, err := os.Readlink(path)
		if err != nil {
			return "", nil, err
		}
		dir, _ := split(path)
		if path = to; !filepath.IsAbs(to) {
			path = dir + to
		}
	}
	return "", nil, errLinks
}

// existing returns the file at path, or nil if there is none.
func existing(path string) (fs.FileInfo, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errNotRegular(path, st.Mode())
	}
	return st, nil
}
