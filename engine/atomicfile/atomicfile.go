// SPDX-License-Identifier: Apache-2.0

// Package atomicfile writes files that appear whole or not at all.
//
// A File is written under a temporary name in the folder of its destination; Commit syncs it,
// gives it its name and syncs the folder. Until then the destination is untouched: a process
// that is killed, or a disk that fills up, leaves at most a temporary file
// (".NAME.kvist-*.tmp"), never half of an output.
//
// # Concurrency
//
// A File belongs to one goroutine, but for WriteAt, which may be called from many at once.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is a file in the making. Use the embedded os.File to write, then Commit or Abort.
type File struct {
	*os.File
	path  string
	force bool
	done  bool
}

// Create starts a file that Commit will call path. Without force, a path that exists is refused,
// here and again at Commit.
//
// Errors: fs.ErrExist; those of the file system.
func Create(path string, force bool) (*File, error) {
	if !force {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("kvist/atomicfile: create %s: %w", path, fs.ErrExist)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".kvist-*.tmp")
	if err != nil {
		return nil, fmt.Errorf("kvist/atomicfile: create %s: %w", path, err)
	}
	return &File{File: f, path: path, force: force}, nil
}

// Commit syncs the file and puts it in its place. After an error nothing is left behind.
//
// Errors: fs.ErrExist where the path came into being meanwhile and force was not set; those of
// the file system, a full disk among them.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("kvist/atomicfile: commit %s: %w", f.path, fs.ErrClosed)
	}
	err := f.commit()
	if err != nil {
		return errors.Join(fmt.Errorf("kvist/atomicfile: commit %s: %w", f.path, err), f.Abort())
	}
	f.done = true
	return nil
}

func (f *File) commit() error {
	// CreateTemp makes files private; an output gets the mode any new file would have.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.File.Close(); err != nil {
		return err
	}
	if f.force {
		if err := os.Rename(f.Name(), f.path); err != nil {
			return err
		}
	} else {
		// A link, unlike a rename, never replaces a file that came into being meanwhile.
		if err := os.Link(f.Name(), f.path); err != nil {
			if errors.Is(err, fs.ErrExist) {
				return err
			}
			// File systems without hard links: the check of Create has to do.
			if err := os.Rename(f.Name(), f.path); err != nil {
				return err
			}
		} else if err := os.Remove(f.Name()); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(f.path))
}

// syncDir makes the new name itself durable. Systems that cannot sync a folder are forgiven.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	_ = d.Sync()
	return d.Close()
}

// Abort removes the temporary file. After Commit it does nothing, so it may be deferred.
func (f *File) Abort() error {
	if f.done {
		return nil
	}
	f.done = true
	_ = f.File.Close() // may be closed already by a failed Commit
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kvist/atomicfile: abort %s: %w", f.path, err)
	}
	return nil
}
