// SPDX-License-Identifier: Apache-2.0

// Package atomicfile writes files that appear whole or not at all.
//
// A File is written in the folder of its destination. Commit syncs it, gives it its name and syncs
// the folder. Until then the destination is unchanged: a killed process or a full disk never leaves
// half of an output.
//
// # Temporary files
//
// On Linux, a File has no name until Commit if the file system supports O_TMPFILE. The system frees
// it when the process ends, for any reason. Commit links it to its name. A link cannot replace a
// file, so replacing takes two steps: a link to a temporary name, then a rename.
//
// On other systems, and between these two steps, there is a temporary file named ".kvist-", 16
// hexadecimal digits and ".tmp". Its process holds a lock (flock) on it. Create removes the files
// with such names in its folder that no process has locked. On a network file system this needs
// locks that all machines share, as NFS has. Systems without flock remove temporary files that are
// older than a day and not open.
//
// # Modes
//
// A new file has the mode that the system gives any new file: 0666 without the bits of the umask. A
// file that replaces another gets its mode, and its owner and group if the process may set them. If
// the group cannot be kept, the new group gets the permissions of others.
//
// # Links
//
// If the path is a symbolic link, Commit replaces the file that it leads to and keeps the link.
// Only regular files are replaced: Create refuses a folder, a device, a FIFO or a socket.
//
// # Concurrency
//
// A File belongs to one goroutine, except that WriteAt is safe for concurrent use.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// File is a file that has not appeared yet. Write to the embedded os.File, then call Commit or
// Abort.
type File struct {
	*os.File
	asked string      // the argument of Create, for messages
	path  string      // the final path: asked, or the target of its links
	temp  string      // the temporary name; "" for none
	mode  fs.FileMode // mode of the new file, unless it replaces one
	force bool
	done  bool
}

// Create starts a file that Commit will name path. Without force, Create refuses a path that
// exists, and so does Commit. Create removes temporary files that killed processes left in the
// folder.
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
		perm = 0o600 // the old file may be private: deny access until its mode is set
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
		_ = f.Chmod(0o600) // until it is complete; ignored by file systems without modes
	}
	return f, nil
}

// Commit syncs the file and gives it its name. On an error it leaves nothing behind.
//
// Errors: fs.ErrExist if the path exists by now and force was not set; ErrNotRegular if it is no
// longer a regular file; those of the file system, such as a full disk.
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
	// The data are on disk under their name, so an error of Close is no failure.
	_ = f.File.Close()
	dir, _ := split(f.path)
	syncDir(folder(dir))
	return nil
}

// settle sets the final mode, and the owner of the replaced file.
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
	// There is a file to replace, or the file system cannot link a file without a name.
	dir, _ := split(f.path)
	temp, err := linkTemp(f.File, dir)
	if err == nil {
		f.temp = temp
	} else if err = f.copyToTemp(dir); err != nil {
		return err
	}
	return f.rename()
}

// copyToTemp replaces a file that cannot be linked by a copy with a temporary name.
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

// rename renames the temporary file to its final name.
func (f *File) rename() error {
	if closeToRename {
		if err := f.File.Close(); err != nil {
			return err
		}
	}
	if f.force {
		return os.Rename(f.temp, f.path)
	}
	// A link, unlike a rename, never replaces a file that was created meanwhile.
	err := os.Link(f.temp, f.path)
	if errors.Is(err, fs.ErrExist) {
		return err
	}
	if err != nil {
		// The file system has no hard links: the earlier check has to do.
		return os.Rename(f.temp, f.path)
	}
	_ = os.Remove(f.temp) // the output exists; a later sweep removes the extra name
	return nil
}

// syncDir makes the new name durable. It ignores systems that cannot sync a folder.
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
	// Another process may have removed it after it was closed.
	if err := os.Remove(f.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("kvist/atomicfile: abort %s: %w", f.asked, err)
	}
	return nil
}
