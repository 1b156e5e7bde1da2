// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"iter"
	"time"
)

// Objects is what a service must do. Its methods are called by many goroutines and try once.
//
// Errors say what happened by what they match: fs.ErrExist and fs.ErrNotExist as said below; quant.ErrFull when the
// service has no room; quant.ErrTooLarge for an object that it does not take, or that is over the bound of a Get;
// quant.ErrShape and quant.ErrUnsupported for what will never work, such as a bucket that is not there or a wrong
// password. Any other error is taken for one that may pass: the call is made again.
type Objects interface {
	// Create stores an object unless there is one under the name: then fs.ErrExist. The service may remove it when ttl
	// is over; 0 is never.
	Create(ctx context.Context, name string, object []byte, ttl time.Duration) error
	// Replace stores an object in the place of the one of a version. fs.ErrExist: another one is there now, or none.
	Replace(ctx context.Context, name string, object []byte, ttl time.Duration, of Version) error
	// Get returns an object of up to most bytes and its version. The bytes belong to the caller.
	// fs.ErrNotExist: there is none. quant.ErrCorrupt: a part of it is missing; with its version it can be replaced.
	Get(ctx context.Context, name string, most int64) ([]byte, Version, error)
	// Peek returns the first n bytes of an object, or all if it has fewer.
	Peek(ctx context.Context, name string, n int) ([]byte, error)
	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, name string) error
	// List yields the names with a prefix, in any order.
	List(ctx context.Context, prefix string) iter.Seq2[string, error]
	// Close ends the connections.
	Close() error
}

// Expirer is Objects of which the service removes what has expired: there is nothing to sweep.
type Expirer interface{ Expires() bool }

// Version tells an object from others that were under its name, in the terms of the service.
type Version string
