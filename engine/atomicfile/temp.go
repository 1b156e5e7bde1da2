// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A temporary name is tempPrefix, tempRandom bytes in hexadecimal digits, tempSuffix. Its length
// does not depend on that of the output, whose name may be as long as the file system takes.
const (
	tempPrefix = ".kvist-"
	tempSuffix = ".tmp"
	tempRandom = 8
)

// tempTries is how often a temporary name is chosen anew where it is taken. Chance takes none of
// 64 bits twice; a file that is swept while it is made does.
const tempTries = 100

func tempName() string {
	var b [tempRandom]byte
	_, _ = rand.Read(b[:]) // never fails
	return tempPrefix + hex.EncodeToString(b[:]) + tempSuffix
}

// isTemp reports whether name is a temporary one.
func isTemp(name string) bool {
	s, ok := strings.CutPrefix(name, tempPrefix)
	if !ok {
		return false
	}
	s, ok = strings.CutSuffix(s, tempSuffix)
	return ok && len(s) == 2*tempRandom && strings.Trim(s, "0123456789abcdef") == ""
}

// openTemp makes a file with a temporary name in dir and takes the lock on it.
func openTemp(dir string, perm fs.FileMode) (*os.File, string, error) {
	for range tempTries {
		name := dir + tempName()
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			// A name that nobody asked for would only puzzle.
			var at *fs.PathError
			if errors.As(err, &at) {
				err = at.Err
			}
			return nil, "", fmt.Errorf("no file can be made in %s: %w", folder(dir), err)
		}
		// Another process may have found the file before the lock was taken. It removes the file
		// then.
		if lock(f) && same(f, name) {
			return f, name, nil
		}
		_ = f.Close()
	}
	return nil, "", fmt.Errorf("no temporary file in %s: %w", folder(dir), fs.ErrExist)
}

// linkTemp gives a file without a name a temporary one in dir. The lock is taken before the name
// can be seen.
func linkTemp(f *os.File, dir string) (string, error) {
	if !lock(f) {
		return "", fmt.Errorf("no lock: %w", fs.ErrPermission)
	}
	err := error(fs.ErrExist)
	for range tempTries {
		name := dir + tempName()
		if err = linkNameless(f, name); err == nil {
			return name, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return "", err
}

// same reports whether name is that of the open file f.
func same(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

// sweep removes the temporary files in dir that no process works on. What cannot be removed stays.
func sweep(dir string) {
	d, err := os.Open(folder(dir))
	if err != nil {
		return
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if isTemp(n) {
				removeAbandoned(dir + n)
			}
		}
		if err != nil { // io.EOF among them
			return
		}
	}
}

// Scratch is a file for data on their way. It is gone when it is closed or the process ends; where
// the system needs a name for it, the next Scratch removes what a killed process left.
type Scratch struct {
	*os.File
	temp string // the name; "": none
}

// NewScratch makes a scratch file in the folder for temporary files.
func NewScratch() (*Scratch, error) { return newScratch(openNameless) }

func newScratch(nameless func(dir, name string, perm fs.FileMode) *os.File) (*Scratch, error) {
	dir := os.TempDir() + string(filepath.Separator)
	sweep(dir)
	if f := nameless(dir, dir+"scratch", 0o600); f != nil {
		return &Scratch{File: f}, nil
	}
	f, temp, err := openTemp(dir, 0o600)
	if err != nil {
		return nil, fmt.Errorf("kvist/atomicfile: scratch file: %w", err)
	}
	if os.Remove(temp) == nil { // not where open files have to keep their name
		temp = ""
	}
	return &Scratch{File: f, temp: temp}, nil
}

// Close closes the file and gives its space back.
func (s *Scratch) Close() error {
	err := s.File.Close()
	if s.temp == "" {
		return err
	}
	if e := os.Remove(s.temp); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}
