// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"sync"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/internal/expiry"
	"github.com/kvist-project/kvist/quant"
)

// ledger counts the bytes of objects.
type ledger struct {
	recounting sync.Mutex
	mu         sync.Mutex
	at         map[store.Key]int64 // nil: nothing is counted
	total      int64
}

func (l *ledger) put(k store.Key, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at != nil {
		l.total += n - l.at[k]
		l.at[k] = n
	}
}

func (l *ledger) forget(k store.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total -= l.at[k]
	delete(l.at, k)
}

// after returns what the total is with n bytes under a key.
func (l *ledger) after(k store.Key, n int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total - l.at[k] + n
}

// room makes room for n bytes under a key: it counts again, and removes what has expired.
func (s *Store) room(ctx context.Context, k store.Key, n int64) error {
	most := s.o.MaxBytes
	if most == 0 || s.ledger.after(k, n) <= most {
		return nil
	}
	s.ledger.recounting.Lock()
	defer s.ledger.recounting.Unlock()
	if s.ledger.after(k, n) <= most { // another call has made room
		return nil
	}
	if err := s.recount(ctx); err != nil {
		return err
	}
	if total := s.ledger.after(k, n); total > most {
		return fmt.Errorf("%d bytes, %d with them, the limit is %d: %w", n, total, most, quant.ErrFull)
	}
	return nil
}

// Sweep is that of store.Sweeper, where the service does not remove what has expired by itself. It reads the frame of
// every object, one each Options.SweepPause. What another process puts again in the moment it is removed may go too.
func (s *Store) Sweep(ctx context.Context) error {
	if e, ok := s.objects.(Expirer); ok && e.Expires() {
		return failed("sweep", store.Key{}, s.usable(ctx))
	}
	for x, err := range s.list(ctx) {
		if err == nil && s.o.SweepPause > 0 {
			err = s.wait(ctx, s.o.SweepPause)
		}
		if err == nil && !x.Expires.IsZero() && !x.Expires.After(s.o.Now()) {
			err = s.remove(ctx, x.Key)
		}
		if err != nil {
			return failed("sweep", store.Key{}, err)
		}
	}
	return nil
}

// recount counts what is there, and removes what has expired.
func (s *Store) recount(ctx context.Context) error {
	at, total := map[store.Key]int64{}, int64(0)
	for x, err := range s.list(ctx) {
		if err != nil {
			return err
		}
		if !x.Expires.IsZero() && !x.Expires.After(s.o.Now()) {
			if err := s.remove(ctx, x.Key); err != nil {
				return err
			}
			continue
		}
		at[x.Key] = x.Bytes + FrameBytes
		total += x.Bytes + FrameBytes
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if s.o.MaxBytes > 0 {
		s.ledger.at, s.ledger.total = at, total
	}
	return nil
}

// list yields all objects, also those that have expired. What is no object of this store is told to the logger. A
// listing that breaks off is begun again while it has yielded nothing.
func (s *Store) list(ctx context.Context) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := s.usable(ctx); err != nil {
			yield(store.Info{}, err)
			return
		}
		names, err := s.names(ctx)
		if err != nil {
			yield(store.Info{}, err)
			return
		}
		for _, k := range names {
			x, err := s.peek(ctx, k)
			switch {
			case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
				continue
			case errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion):
				s.o.Logger.Warn("kvist/store: an object is left out of a list", "name", s.name(k), "error", err)
				continue
			}
			if !yield(x, err) || err != nil {
				return
			}
		}
	}
}

// names returns the keys of all names of the prefix.
func (s *Store) names(ctx context.Context) (keys []store.Key, err error) {
	err = s.try(ctx, func(ctx context.Context) error {
		keys = nil
		seen := map[store.Key]bool{} // services may yield a name twice
		for name, err := range s.objects.List(ctx, s.o.Prefix) {
			if err != nil {
				return err
			}
			k, ok := keyOf(strings.TrimPrefix(name, s.o.Prefix))
			if !ok {
				s.o.Logger.Warn("kvist/store: a name that is no key is left out of a list", "name", name)
				continue
			}
			if !seen[k] {
				seen[k] = true
				keys = append(keys, k)
			}
		}
		return nil
	})
	return keys, err
}

func keyOf(name string) (k store.Key, ok bool) {
	n, err := hex.Decode(k[:], []byte(name[:min(len(name), 2*len(k))]))
	return k, err == nil && n == len(k) && k.String() == name
}

// peek returns what the frame of an object says.
func (s *Store) peek(ctx context.Context, k store.Key) (x store.Info, err error) {
	err = s.try(ctx, func(ctx context.Context) error {
		p, err := s.objects.Peek(ctx, s.name(k), FrameBytes)
		if err != nil {
			return err
		}
		f, err := parse(p)
		if err == nil && f.key != k {
			err = fmt.Errorf("the object of key %s: %w", f.key.String()[:16], quant.ErrCorrupt)
		}
		x = store.Info{Key: k, Bytes: f.bytes, Expires: expiry.Time(f.expires)}
		return err
	})
	return x, err
}
