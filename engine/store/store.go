// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"syscall"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// Key names bytes in a store. Keys are made with a secret (see Context.Key), so that nobody can ask
// for what others hold.
type Key [32]byte

// String returns the key in hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Info describes what is under a key.
type Info struct {
	Key     Key
	Bytes   int64
	Expires time.Time // zero: never
}

// Scrubber is a Store in which deleted bytes stay for a while, unless it is told to overwrite them.
type Scrubber interface {
	// Scrub overwrites the bytes of all that was deleted, replaced or found to have expired.
	Scrub(ctx context.Context) error
}

// Sweeper is a Store in which what has expired takes room until something else is put, unless it is told to remove it.
type Sweeper interface {
	// Sweep removes what has expired. Others may use the store meanwhile.
	Sweep(ctx context.Context) error
}

// Store keeps immutable bytes under keys.
type Store interface {
	// Put stores the bytes, which may be reused when it returns. What expires is not found after that
	// time; the zero time is never. Putting the same bytes again keeps the later of the two times.
	Put(ctx context.Context, k Key, data []byte, expires time.Time) error
	// Get returns the bytes, which belong to the caller.
	Get(ctx context.Context, k Key) ([]byte, error)
	// Delete removes what is under the key. It is no error if there is nothing.
	Delete(ctx context.Context, k Key) error
	// List yields what has not expired, in any order. It may miss or yield what is put or deleted
	// meanwhile. After an error it ends.
	List(ctx context.Context) iter.Seq2[Info, error]
	// Close makes what was put durable, if the store is. Later calls fail with quant.ErrClosed; closing
	// again does nothing.
	Close() error
}

// Error says which call failed, and where.
type Error struct {
	Call   string
	Key    Key
	File   string // "" beside a file
	Offset int64
	Err    error
}

// Error names the call, the key, and on disk the file and the offset.
func (e *Error) Error() string {
	s := "kvist/store: " + e.Call
	if e.Key != (Key{}) {
		s += " " + e.Key.String()[:16]
	}
	if e.File != "" {
		s += fmt.Sprintf(" at %s:%d", e.File, e.Offset)
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// wrap adds the call and the key to an error.
func wrap(call string, k Key, err error) error {
	if err == nil {
		return nil
	}
	at, ok := err.(*Error) // it may say where already
	if !ok {
		at = &Error{Err: err}
	}
	at.Call, at.Key = call, k
	if errors.Is(at.Err, syscall.ENOSPC) {
		at.Err = fmt.Errorf("%w: %w", quant.ErrFull, at.Err)
	}
	return at
}

var (
	errAbsent = fmt.Errorf("nothing is there: %w", fs.ErrNotExist)
	errOther  = fmt.Errorf("other bytes are there: %w", fs.ErrExist)
	errClosed = fmt.Errorf("the store is closed: %w", quant.ErrClosed)
)
