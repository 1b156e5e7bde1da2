// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"time"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/internal/expiry"
	"github.com/kvist-project/kvist/quant"
)

// Store is a store.Store over a service.
type Store struct {
	objects Objects
	o       Options
	transit chan struct{} // a place for every object that may be in transit
	ledger  ledger

	mu     sync.Mutex
	rested time.Time // when calls may try again
	cause  error     // of the rest
	closed bool
	done   chan struct{} // closed by Close
}

// Open returns a store over a service, which the store closes. With Options.MaxBytes it lists what is there.
//
// Errors: quant.ErrShape for options outside their ranges; those of List.
func Open(ctx context.Context, objects Objects, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, failed("open", store.Key{}, err)
	}
	s := &Store{objects: objects, o: o, transit: make(chan struct{}, o.InTransit), done: make(chan struct{})}
	if o.MaxBytes > 0 {
		if err := s.recount(ctx); err != nil {
			return nil, failed("open", store.Key{}, err)
		}
	}
	return s, nil
}

// failed adds the call and the key to an error.
func failed(call string, k store.Key, err error) error {
	if err == nil {
		return nil
	}
	return &store.Error{Call: call, Key: k, Err: err}
}

var (
	errAbsent = fmt.Errorf("nothing is there: %w", fs.ErrNotExist)
	errOther  = fmt.Errorf("other bytes are there: %w", fs.ErrExist)
	errClosed = fmt.Errorf("the store is closed: %w", quant.ErrClosed)
)

func (s *Store) name(k store.Key) string { return s.o.Prefix + k.String() }

// enter waits for a place in transit. The caller calls leave.
func (s *Store) enter(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	select {
	case s.transit <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.usable(ctx); err != nil {
		s.leave()
		return err
	}
	return nil
}

func (s *Store) leave() { <-s.transit }

func (s *Store) usable(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	return ctx.Err()
}

// Put is that of store.Store.
func (s *Store) Put(ctx context.Context, k store.Key, data []byte, expires time.Time) error {
	if err := s.enter(ctx); err != nil {
		return failed("put", k, err)
	}
	defer s.leave()
	return failed("put", k, s.put(ctx, k, data, expiry.Nanos(expires)))
}

// mostRaces is how often an object may change between being read and being replaced until a Put gives up.
const mostRaces = 16

func (s *Store) put(ctx context.Context, k store.Key, data []byte, end int64) error {
	n := int64(len(data))
	if n > s.o.ObjectBytes || s.o.MaxBytes > 0 && n+FrameBytes > s.o.MaxBytes {
		return fmt.Errorf("%d bytes, the most are %d: %w", n, s.mostBytes(), quant.ErrTooLarge)
	}
	object, version := seal(k, data, end), Version("")
	for range mostRaces {
		err := s.store(ctx, k, object, version)
		if err == nil && s.o.ReadBack {
			_, _, err = s.get(ctx, k)
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		var was found
		was, version, err = s.get(ctx, k)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it went meanwhile
			version = ""
		case errors.Is(err, quant.ErrCorrupt): // what is damaged or has expired is put again
		case err != nil:
			return err
		case !bytes.Equal(was.data, data):
			return errOther
		case expiry.Later(was.expires, end) == was.expires:
			s.ledger.put(k, int64(len(object))) // a try that seemed to fail may have put it
			return nil
		default:
			restamp(object, expiry.Later(was.expires, end))
		}
	}
	return fmt.Errorf("the object changes all the time: %w", quant.ErrUnavailable)
}

func (s *Store) mostBytes() int64 {
	if s.o.MaxBytes > 0 {
		return min(s.o.ObjectBytes, s.o.MaxBytes-FrameBytes)
	}
	return s.o.ObjectBytes
}

// store creates an object, or replaces one of a version if that is not "". fs.ErrExist: look again.
func (s *Store) store(ctx context.Context, k store.Key, object []byte, of Version) error {
	if err := s.room(ctx, k, int64(len(object))); err != nil {
		return err
	}
	ttl := time.Duration(0)
	if end := expiryOf(object); end != 0 {
		// Later than asked rather than earlier: readers go by the frame.
		ttl = max(time.Duration(end-s.o.Now().UnixNano()), 0) + time.Second
	}
	err := s.try(ctx, func(ctx context.Context) error {
		if of == "" {
			return s.objects.Create(ctx, s.name(k), object, ttl)
		}
		return s.objects.Replace(ctx, s.name(k), object, ttl, of)
	})
	if err == nil {
		s.ledger.put(k, int64(len(object)))
	}
	return err
}

// found is what is under a key.
type found struct {
	data    []byte
	expires int64
}

// get returns the checked bytes under a key. What has expired is damaged in the eyes of Put: it is replaced.
func (s *Store) get(ctx context.Context, k store.Key) (x found, version Version, err error) {
	err = s.try(ctx, func(ctx context.Context) error {
		p, v, err := s.objects.Get(ctx, s.name(k), s.o.ObjectBytes+FrameBytes)
		version = v // a service that finds damage itself says of which version
		if err != nil {
			return err
		}
		f, data, err := open(k, p)
		if err != nil {
			return err
		}
		x = found{data, f.expires}
		return nil
	})
	if err == nil && x.expires != 0 && x.expires <= s.o.Now().UnixNano() {
		err = errExpired
	}
	return x, version, err
}

// errExpired is damage to Put, which replaces, and absence to others.
var errExpired = fmt.Errorf("it has expired: %w", quant.ErrCorrupt)

// Get is that of store.Store.
func (s *Store) Get(ctx context.Context, k store.Key) ([]byte, error) {
	if err := s.enter(ctx); err != nil {
		return nil, failed("get", k, err)
	}
	defer s.leave()
	x, _, err := s.get(ctx, k)
	if errors.Is(err, errExpired) || errors.Is(err, fs.ErrNotExist) {
		err = errAbsent
	}
	if err != nil {
		return nil, failed("get", k, err)
	}
	return x.data[:len(x.data):len(x.data)], nil
}

// Delete is that of store.Store.
func (s *Store) Delete(ctx context.Context, k store.Key) error {
	if err := s.enter(ctx); err != nil {
		return failed("delete", k, err)
	}
	defer s.leave()
	return failed("delete", k, s.remove(ctx, k))
}

func (s *Store) remove(ctx context.Context, k store.Key) error {
	err := s.try(ctx, func(ctx context.Context) error { return s.objects.Delete(ctx, s.name(k)) })
	if err == nil {
		s.ledger.forget(k)
	}
	return err
}

// List is that of store.Store. It reads the frame of every object.
func (s *Store) List(ctx context.Context) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		for x, err := range s.list(ctx) {
			if err != nil {
				yield(store.Info{}, failed("list", store.Key{}, err))
				return
			}
			if expired := !x.Expires.IsZero() && !x.Expires.After(s.o.Now()); !expired && !yield(x, nil) {
				return
			}
		}
	}
}

// Close is that of store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	close(s.done)
	return failed("close", store.Key{}, s.objects.Close())
}
