// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package atomicfile

import (
	"errors"
	"io/fs"
	"os"
)

// openNameless returns nil: this system has no files without a name.
func openNameless(string, string, fs.FileMode) *os.File { return nil }

func linkNameless(f *os.File, path string) error {
	return &os.LinkError{Op: "link", Old: f.Name(), New: path, Err: errors.ErrUnsupported}
}
