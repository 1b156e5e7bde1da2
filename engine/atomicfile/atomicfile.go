// SPDX-License-Identifier: Apache-2.0

// Package atomicfile writes files that appear whole or not at all.
//
// A File is written beside its destination, in the same folder. Commit syncs it, gives it its
// name and syncs the folder. Until then the destination is untouched: a process that is killed,
// or a disk that fills up, never leaves half of an output.
//
// # What a killed process leaves
//
// On Linux a File has no name until Commit (O_TMPFILE) where the file system can do that: the
// system frees it when the process ends, however it ends. Commit links it to its name. A link
// replaces nothing, so that a file is replaced in two steps: a link to a temporary name, then a
// rename.
//
// Elsewhere, and for that moment, there is a temporary file, ".kvist-" and 16 hexadecimal digits
// and ".tmp". Its process holds a lock (flock) on it while it lives. Create removes the files with
// such names in its folder that nobody holds a lock on. A network file system must share locks
// between its machines for this, as NFS does. Systems without flock remove what is older than a
// day and not open.
//
// # Modes
//
// A new file has the mode that the system gives to any new file: 0666 without the bits of the
// umask. A file that replaces another takes its mode, and its owner and group where the process
// may set them. Where the group cannot be kept, the new one gets no more than everybody has.
//
// # Links
//
// A path that is a symbolic link is replaced where it leads; the link stays. Only plain files are
// replaced: a folder, a device, a FIFO or a socket is refused.
//
// # Concurrency
//
// A File belongs to one goroutine, but for WriteAt, which may be called from many at once.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// File is a file in the making. Use the embedded os.File to write, then Commit or Abort.
type File struct {
	*os.File
	asked string      // what Create was given, for messages
	path  string      // what the file becomes: asked, or where the links there lead
	temp  string      // the temporary name; "": none
	mode  fs.FileMode // of the file in its place, unless it replaces one
	force bool
	done  bool
}

// Create starts a file that Commit will call path. Without force, a path that exists is refused,
// here and again at Commit. Temporary files that killed processes left in the folder are removed.
//
// Errors: those of Check; those of the file system.
func Create(path string, force bool) (*File, error) {
	return create(path, force, openNameless)
}

// create is Create. nameless opens a file without a name in a folder, or returns nil.
func create(path string, force bool,
	nameless func(dir, name string, perm fs.FileMode) *os.File) (*File, error) {
	target, old, err := resolve(path, force)
	if err != nil {
		return nil, fmt.Errorf("kvist/atomicfile: create %s: %w", path, err)
	}
	dir, _ := split(target)
	sweep(dir)
	perm := fs.FileMode(0o666)
	if old != nil {
		perm = 0o600 // the old file may have been private: let nobody in before its mode is set
	}
	f := &File{asked: path, path: target, force: force}
	if f.File = nameless(dir, target, perm); f.File == nil {
		if f.File, f.temp, err = openTemp(dir, perm); err != nil {
			return nil, fmt.Errorf("kvist/atomicfile: create %s: %w", path, err)
		}
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kvist/atomicfile: create %s: %w", path, err), f.Abort())
	}
	f.mode = st.Mode().Perm()
	if old != nil {
		f.mode = old.Mode().Perm()
	}
	if f.temp != "" {
		_ = f.Chmod(0o600) // until it is whole; file systems without modes keep theirs
	}
	return f, nil
}

// Commit syncs the file and puts it in its place. After an error nothing is left behind.
//
// Errors: fs.ErrExist where the path came into being meanwhile and force was not set;
// ErrNotRegular where it became something else than a file; those of the file system, a full disk
// among them.
func (f *File) Commit() error {
	if f.done {
		return fmt.Errorf("kvist/atomicfile: commit %s: %w", f.asked, fs.ErrClosed)
	}
	if err := f.commit(); err != nil {
		return errors.Join(fmt.Errorf("kvist/atomicfile: commit %s: %w", f.asked, err), f.Abort())
	}
	f.done = true
	return nil
}

func (f *File) commit() error {
	old, err := existing(f.path)
	if err != nil {
		return err
	}
	if old != nil && !f.force {
		return fs.ErrExist
	}
	if err := f.settle(old); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.place(old != nil); err != nil {
		return err
	}
	// The data are on the disk and have their name: what Close could still say is no failure.
	_ = f.File.Close()
	dir, _ := split(f.path)
	syncDir(folder(dir))
	return nil
}

// settle gives the file the mode it is to have, and the owner of the file it replaces.
func (f *File) settle(old fs.FileInfo) error {
	mode := f.mode
	if old != nil {
		mode = keepOwner(f.File, old)
	}
	st, err := f.Stat()
	if err != nil || st.Mode().Perm() == mode {
		return err
	}
	return f.Chmod(mode)
}

// place gives the file its name.
func (f *File) place(replace bool) error {
	if f.temp != "" {
		return f.rename()
	}
	if !replace {
		err := linkNameless(f.File, f.path)
		if err == nil || errors.Is(err, fs.ErrExist) && !f.force {
			return err
		}
	}
	// There is something to replace, or the file system links no files without a name.
	dir, _ := split(f.path)
	temp, err := linkTemp(f.File, dir)
	if err == nil {
		f.temp = temp
	} else if err = f.copyToTemp(dir); err != nil {
		return err
	}
	return f.rename()
}

// copyToTemp puts a copy with a temporary name in the place of a file that gets none.
func (f *File) copyToTemp(dir string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c, temp, err := openTemp(dir, 0o600)
	if err != nil {
		return err
	}
	nameless := f.File
	f.File, f.temp = c, temp // Abort removes it
	_, err = io.Copy(c, io.NewSectionReader(nameless, 0, st.Size()))
	if err = errors.Join(err, nameless.Close()); err != nil {
		return err
	}
	if old, e := existing(f.path); e == nil && old != nil {
		keepOwner(c, old)
	}
	if err := c.Chmod(st.Mode().Perm()); err != nil {
		return err
	}
	return c.Sync()
}

// rename turns the temporary name into the name.
func (f *File) rename() error {
	if closeToRename {
		if err := f.File.Close(); err != nil {
			return err
		}
	}
	if f.force {
		return os.Rename(f.temp, f.path)
	}
	// A link, unlike a rename, never replaces a file that came into being meanwhile.
	err := os.Link(f.temp, f.path)
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	if err != nil {
		// File systems without hard links: the check before has to do.
		return os.Rename(f.temp, f.path)
	}
	_ = os.Remove(f.temp) // the output is there; a name too many is swept
	return nil
}

// syncDir makes the new name itself durable. Systems that cannot sync a folder are forgiven.
func syncDir(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	_ = d.Sync()
	_ = d.Close()
}

// Abort removes the temporary file. After Commit it does nothing, so it may be deferred.
func (f *File) Abort() error {
	if f.done {
		return nil
	}
	f.done = true
	_ = f.File.Close() // may be closed already by a failed Commit
	if f.temp == "" {
		return nil
	}
	// Another process may have swept it since it is closed.
	if err := os.Remove(f.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kvist/atomicfile: abort %s: %w", f.asked, err)
	}
	return nil
}
