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

// A temporary name is tempPrefix, tempRandom bytes in hexadecimal, tempSuffix. Its length does not
// depend on the output's name, which may be as long as the file system allows.
const (
	tempPrefix = ".kvist-"
	tempSuffix = ".tmp"
	tempRandom = 8
)

// tempTries is the number of names to try. 64 random bits do not repeat, but another process may
// remove the file just after it was created.
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

// openTemp creates a file with a temporary name in dir and locks it.
func openTemp(dir string, perm fs.FileMode) (*os.File, string, error) {
	for range tempTries {
		name := dir + tempName()
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			// Do not report the temporary name: the user did not choose it.
			var at *fs.PathError
			if errors.As(err, &at) {
				err = at.Err
			}
			return nil, "", fmt.Errorf("cannot create a file in %s: %w", folder(dir), err)
		}
		// Another process may have found the file before it was locked. That process removes it.
		if lock(f) && same(f, name) {
			return f, name, nil
		}
		_ = f.Close()
	}
	return nil, "", fmt.Errorf("cannot create a temporary file in %s: %w", folder(dir), fs.ErrExist)
}

// linkTemp gives a file without a name a temporary one in dir. It takes the lock before other
// processes can see the name.
func linkTemp(f *os.File, dir string) (string, error) {
	if !lock(f) {
		return "", fmt.Errorf("cannot lock the file: %w", fs.ErrPermission)
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

// sweep removes the temporary files in dir that no process uses. It ignores files it cannot remove.
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
