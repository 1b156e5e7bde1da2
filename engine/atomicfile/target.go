// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNotRegular stands for a path that is something else than a plain file. Errors of the package
// that match it are NotRegularErrors.
var ErrNotRegular = errors.New("not a regular file")

// errLinks stands for symbolic links that lead to each other.
var errLinks = errors.New("too many symbolic links")

// maxLinks is how many symbolic links are followed, as on Linux.
const maxLinks = 40

// NotRegularError is a path that is something else than a plain file. It matches ErrNotRegular.
type NotRegularError struct {
	Path string
	Mode fs.FileMode
}

// Kind says what is there: "a folder", "a device", "a FIFO", "a socket".
func (e *NotRegularError) Kind() string {
	switch {
	case e.Mode.IsDir():
		return "a folder"
	case e.Mode&fs.ModeDevice != 0:
		return "a device"
	case e.Mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case e.Mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "something else"
}

func (e *NotRegularError) Error() string {
	return fmt.Sprintf("%s is %s, not a regular file", e.Path, e.Kind())
}

// Unwrap makes the error match ErrNotRegular.
func (e *NotRegularError) Unwrap() error { return ErrNotRegular }

// Check says whether Create would refuse path for what is there. It changes nothing.
//
// Errors: ErrNotRegular for a folder, a device, a FIFO or a socket, also behind a symbolic link;
// fs.ErrExist for a file where force is not set; fs.ErrInvalid for a name that no file can have or
// that is one of our temporary ones; those of the file system.
func Check(path string, force bool) error {
	if _, _, err := resolve(path, force); err != nil {
		return fmt.Errorf("kvist/atomicfile: create %s: %w", path, err)
	}
	return nil
}

// OpenRegular opens a plain file for reading. Anything else is refused before it is opened: a FIFO
// would wait for its other end.
//
// Errors: ErrNotRegular; those of the file system.
func OpenRegular(path string) (*os.File, fs.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, &NotRegularError{path, st.Mode()}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
		err = &NotRegularError{path, st.Mode()}
	}
	if err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, nil, err
	}
	return f, st, nil
}

// split cuts a path before its last element. Unlike filepath.Dir it leaves the folder as it is
// written: "link/.." is not the folder that holds link.
func split(path string) (dir, base string) { return filepath.Split(path) }

// folder is the name to open a dir of split with.
func folder(dir string) string {
	if dir == "" {
		return "."
	}
	return dir
}

// resolve returns the path of the file that Create is to make or replace, where symbolic links
// lead, and what is there now.
func resolve(path string, force bool) (target string, old fs.FileInfo, err error) {
	_, base := split(path)
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return "", nil, &NotRegularError{path, st.Mode()}
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

// existing returns what is at path, nil where nothing is.
func existing(path string) (fs.FileInfo, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &NotRegularError{path, st.Mode()}
	}
	return st, nil
}
