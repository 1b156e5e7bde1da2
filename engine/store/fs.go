// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// FS is the folder that a Disk keeps its files in. Tests put faults and crashes in its place.
type FS interface {
	// Lock makes the folder that of one process until the result is closed.
	Lock() (io.Closer, error)
	// Names lists the files.
	Names() ([]string, error)
	// Open opens a file for reading and writing; create makes one that must not exist yet.
	Open(name string, create bool) (File, error)
	Remove(name string) error
	// Sync makes created and removed names durable.
	Sync() error
}

// File is a file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Truncate(n int64) error
	Sync() error
	Close() error
}

// folder is a folder of the operating system.
type folder string

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (d folder) Lock() (io.Closer, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(string(d), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is in use: %w", d, err)
	}
	return f, nil
}

func (d folder) Names() ([]string, error) {
	list, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name()
	}
	return names, nil
}

func (d folder) Open(name string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(filepath.Join(string(d), name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d folder) Remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

func (d folder) Sync() error { return syncFolder(string(d)) }
