// SPDX-License-Identifier: Apache-2.0

//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package atomicfile

import (
	"io/fs"
	"os"
	"time"
)

// closeToRename reports that an open file cannot be renamed.
const closeToRename = true

// abandonedAfter is the age from which a temporary file counts as left by a killed process, on
// systems without locks.
const abandonedAfter = 24 * time.Hour

func lock(*os.File) bool { return true }

// removeAbandoned removes an old temporary file. Windows refuses to remove an open one.
func removeAbandoned(path string) {
	st, err := os.Lstat(path)
	if err == nil && st.Mode().IsRegular() && time.Since(st.ModTime()) > abandonedAfter {
		_ = os.Remove(path)
	}
}

func keepOwner(_ *os.File, old fs.FileInfo) fs.FileMode { return old.Mode().Perm() }
