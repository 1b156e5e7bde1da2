// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"io/fs"
	"os"
)

// none is the system without files without names.
func none(string, string, fs.FileMode) *os.File { return nil }

// CreateNamed is Create as it is where files have to have a name.
func CreateNamed(path string, force bool) (*File, error) { return create(path, force, none) }

// NewNamedScratch is NewScratch as it is there.
func NewNamedScratch() (*Scratch, error) { return newScratch(none) }

// Temp is the temporary name of a file, "" for none.
func (f *File) Temp() string { return f.temp }

// CopyToTemp is what Commit does where a file without a name cannot be linked.
func (f *File) CopyToTemp(dir string) error { return f.copyToTemp(dir) }

// Rename is the last step of Commit.
func (f *File) Rename() error { return f.rename() }

// TempName is a temporary name as another process would choose it.
func TempName() string { return tempName() }
