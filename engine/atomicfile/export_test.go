// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"io/fs"
	"os"
)

// none stands for a system without files without names.
func none(string, string, fs.FileMode) *os.File { return nil }

// CreateNamed is Create on a system where every file has a name.
func CreateNamed(path string, force bool) (*File, error) { return create(path, force, none) }

// NewNamedScratch is NewScratch on such a system.
func NewNamedScratch() (*Scratch, error) { return newScratch(none) }

// Temp returns the temporary name of a file, "" if it has none.
func (f *File) Temp() string { return f.temp }

// CopyToTemp is the step of Commit for a file that cannot be linked.
func (f *File) CopyToTemp(dir string) error { return f.copyToTemp(dir) }

// Rename is the last step of Commit.
func (f *File) Rename() error { return f.rename() }

// TempName returns a temporary name as another process would choose it.
func TempName() string { return tempName() }
