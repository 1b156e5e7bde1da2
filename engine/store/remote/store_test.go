// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"iter"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

// service is Objects in memory. fault decides what becomes of a call: an error before it is done, or after.
type service struct {
	mu     sync.Mutex
	at     map[string]object
	serial int
	fault  func(call string) (before, after error)
	change func([]byte) []byte // of what Get and Peek return
	calls  atomic.Int64
}

type object struct {
	data    []byte
	version remote.Version
}

func newService() *service { return &service{at: map[string]object{}} }

// do runs a call under the lock, with the faults that were asked for.
func (s *service) do(ctx context.Context, call string, f func() error) error {
	s.calls.Add(1)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var before, after error
	if s.fault != nil {
		before, after = s.fault(call)
	}
	if before != nil {
		return before
	}
	return errors.Join(f(), after)
}

func (s *service) put(name string, data []byte) {
	s.serial++
	s.at[name] = object{bytes.Clone(data), remote.Version(strconv.Itoa(s.serial))}
}

func (s *service) Create(ctx context.Context, name string, data []byte, _ time.Duration) error {
	return s.do(ctx, "create", func() error {
		if _, ok := s.at[name]; ok {
			return fs.ErrExist
		}
		s.put(name, data)
		return nil
	})
}

func (s *service) Replace(ctx context.Context, name string, data []byte, _ time.Duration, of remote.Version) error {
	return s.do(ctx, "replace", func() error {
		if s.at[name].version != of {
			return fs.ErrExist
		}
		s.put(name, data)
		return nil
	})
}

func (s *service) Get(ctx context.Context, name string, most int64) (p []byte, v remote.Version, err error) {
	err = s.do(ctx, "get", func() error {
		x, ok := s.at[name]
		switch {
		case !ok:
			return fs.ErrNotExist
		case int64(len(x.data)) > most:
			return quant.ErrTooLarge
		}
		p, v = bytes.Clone(x.data), x.version
		if s.change != nil {
			p = s.change(p)
		}
		return nil
	})
	return p, v, err
}

func (s *service) Peek(ctx context.Context, name string, n int) ([]byte, error) {
	p, _, err := s.Get(ctx, name, 1<<40)
	return p[:min(n, len(p))], err
}

func (s *service) Delete(ctx context.Context, name string) error {
	return s.do(ctx, "delete", func() error { delete(s.at, name); return nil })
}

func (s *service) List(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		var names []string
		err := s.do(ctx, "list", func() error {
			for n := range s.at {
				if strings.HasPrefix(n, prefix) {
					names = append(names, n, n) // twice, as a scan of a server may
				}
			}
			return nil
		})
		for _, n := range names {
			if !yield(n, nil) {
				return
			}
		}
		if err != nil {
			yield("", err)
		}
	}
}

func (s *service) Close() error { return nil }

// opened returns a store that tries again at once.
func opened(t *testing.T, s remote.Objects, o remote.Options) *remote.Store {
	o.Pause = time.Microsecond
	r, err := remote.Open(context.Background(), s, o)
	require.NoError(t, err)
	return r
}

var (
	ctx   = context.Background()
	never time.Time
)

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time, most int64) store.Store {
		return opened(t, newService(), remote.Options{Now: now, MaxBytes: most})
	})
}

// A service that fails every other call, half of the time after it was done, is a store all the same.
func TestSuite_FailingService(t *testing.T) {
	storetest.Run(t, func(t *testing.T, now func() time.Time, most int64) store.Store {
		s, n := newService(), 0
		s.fault = func(string) (before, after error) {
			switch n++; n % 4 {
			case 1:
				return context.DeadlineExceeded, nil
			case 3:
				return nil, context.DeadlineExceeded
			}
			return nil, nil
		}
		return opened(t, s, remote.Options{Now: now, MaxBytes: most, Tries: 8})
	})
}

func TestTries_Bounded(t *testing.T) {
	s, broken := newService(), errors.New("broken")
	r := opened(t, s, remote.Options{Tries: 3, Rest: -1})
	s.fault = func(string) (error, error) { return broken, nil }
	for _, f := range []func() error{
		func() error { return r.Put(ctx, storetest.KeyOf(1), nil, never) },
		func() error { return r.Delete(ctx, storetest.KeyOf(1)) },
		func() error { _, err := r.Get(ctx, storetest.KeyOf(1)); return err },
		func() (last error) {
			for _, err := range r.List(ctx) {
				last = err
			}
			return last
		},
	} {
		before := s.calls.Load()
		err := f()
		require.ErrorIs(t, err, quant.ErrUnavailable)
		require.ErrorIs(t, err, broken)
		var at *store.Error
		require.ErrorAs(t, err, &at)
		require.EqualValues(t, 3, s.calls.Load()-before)
	}
}

func TestRest_FailsAtOnceAndComesBack(t *testing.T) {
	s := newService()
	r := opened(t, s, remote.Options{Tries: 2, Rest: 50 * time.Millisecond})
	s.fault = func(string) (error, error) { return context.DeadlineExceeded, nil }
	_, err := r.Get(ctx, storetest.KeyOf(1))
	require.ErrorIs(t, err, quant.ErrUnavailable)
	n := s.calls.Load()
	_, err = r.Get(ctx, storetest.KeyOf(1))
	if s.calls.Load() == n { // unless the machine was so slow that the rest is over
		require.ErrorIs(t, err, quant.ErrUnavailable)
	}
	s.mu.Lock()
	s.fault = nil
	s.mu.Unlock()
	require.Eventually(t, func() bool {
		return r.Put(ctx, storetest.KeyOf(1), []byte("back"), never) == nil
	}, 10*time.Second, time.Millisecond)
	got, err := r.Get(ctx, storetest.KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, "back", string(got))
}

// Every bit of an object, every length of it, and the object of another key are told from the right one.
func TestDamage_NeverReturned(t *testing.T) {
	s := newService()
	r := opened(t, s, remote.Options{Tries: 1})
	want := []byte("some bytes")
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), want, never))
	require.NoError(t, r.Put(ctx, storetest.KeyOf(2), []byte("ten  bytes"), never))
	check := func(what string, change func([]byte) []byte) {
		s.change = change
		_, err := r.Get(ctx, storetest.KeyOf(1))
		require.True(t, errors.Is(err, quant.ErrCorrupt) || errors.Is(err, quant.ErrVersion), "%s: %v", what, err)
	}
	n := remote.FrameBytes + len(want)
	for i := range 8 * n {
		check("bit "+strconv.Itoa(i), func(p []byte) []byte { p[i/8] ^= 1 << (i % 8); return p })
	}
	for i := range n {
		check("length "+strconv.Itoa(i), func(p []byte) []byte { return p[:i] })
	}
	check("longer", func(p []byte) []byte { return append(p, 0) })
	other := s.at["kvist/1/"+storetest.KeyOf(2).String()].data
	check("another key", func([]byte) []byte { return bytes.Clone(other) })
	s.change = nil
	got, err := r.Get(ctx, storetest.KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// What was damaged on its way is read again; what is damaged in the service is put again.
func TestDamage_Heals(t *testing.T) {
	s, n := newService(), 0
	r := opened(t, s, remote.Options{Tries: 3})
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), []byte("right"), never))
	s.change = func(p []byte) []byte {
		if n++; n < 3 {
			p[len(p)-1]++
		}
		return p
	}
	got, err := r.Get(ctx, storetest.KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, "right", string(got))
	s.change = nil
	name := "kvist/1/" + storetest.KeyOf(1).String()
	s.put(name, []byte("rubbish"))
	_, err = r.Get(ctx, storetest.KeyOf(1))
	require.ErrorIs(t, err, quant.ErrCorrupt)
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), []byte("right"), never))
	got, err = r.Get(ctx, storetest.KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, "right", string(got))
}

// lacking is a service that finds itself that a part of an object is missing.
type lacking struct {
	*service
	name string
}

func (l *lacking) Get(ctx context.Context, name string, most int64) ([]byte, remote.Version, error) {
	p, v, err := l.service.Get(ctx, name, most)
	if name == l.name && string(p) == "stump" {
		return nil, v, quant.ErrCorrupt
	}
	return p, v, err
}

// What a service cannot put together is put again.
func TestDamage_OfWhichTheServiceTells(t *testing.T) {
	s := newService()
	name := "kvist/1/" + storetest.KeyOf(1).String()
	r := opened(t, &lacking{s, name}, remote.Options{Tries: 3})
	s.put(name, []byte("stump"))
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), []byte("right"), never))
	got, err := r.Get(ctx, storetest.KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, "right", string(got))
}

func TestReadBack_FindsDamageInPut(t *testing.T) {
	s := newService()
	s.change = func(p []byte) []byte { p[0]++; return p }
	require.ErrorIs(t, opened(t, s, remote.Options{Tries: 2, ReadBack: true}).Put(ctx, storetest.KeyOf(1), nil, never), quant.ErrCorrupt)
	require.NoError(t, opened(t, newService(), remote.Options{ReadBack: true}).Put(ctx, storetest.KeyOf(1), nil, never))
}

// Foreign names and objects, and those of another version, are left out of lists with a reason, and never overwritten.
func TestForeign_SkippedAndKept(t *testing.T) {
	var log bytes.Buffer
	s := newService()
	r := opened(t, s, remote.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), []byte("mine"), never))
	s.put("kvist/1/readme.txt", []byte("theirs"))
	s.put("kvist/1/"+storetest.KeyOf(2).String(), []byte("theirs"))
	s.put("kvist/2/"+storetest.KeyOf(3).String(), []byte("theirs"))
	next := bytes.Clone(s.at["kvist/1/"+storetest.KeyOf(1).String()].data)
	next[8] = 2 // the version
	s.put("kvist/1/"+storetest.KeyOf(4).String(), next)
	var keys []store.Key
	for x, err := range r.List(ctx) {
		require.NoError(t, err)
		keys = append(keys, x.Key)
	}
	require.Equal(t, []store.Key{storetest.KeyOf(1)}, keys)
	require.Contains(t, log.String(), "readme.txt")
	require.Contains(t, log.String(), "version 2")
	_, err := r.Get(ctx, storetest.KeyOf(4))
	require.ErrorIs(t, err, quant.ErrVersion)
	require.ErrorIs(t, r.Put(ctx, storetest.KeyOf(4), []byte("mine"), never), quant.ErrVersion)
}

func TestOptions_Refused(t *testing.T) {
	for _, o := range []remote.Options{{MaxBytes: -1}, {ObjectBytes: -1}, {InTransit: -1}, {Tries: -1}, {Timeout: -1}, {Pause: -1}} {
		_, err := remote.Open(ctx, newService(), o)
		require.ErrorIs(t, err, quant.ErrShape)
	}
	r := opened(t, newService(), remote.Options{ObjectBytes: 10})
	require.ErrorIs(t, r.Put(ctx, storetest.KeyOf(1), make([]byte, 11), never), quant.ErrTooLarge)
	require.NoError(t, r.Put(ctx, storetest.KeyOf(1), make([]byte, 10), never))
}

// slow is a service of which calls take until their time is over.
type slow struct{ *service }

func (s slow) Get(ctx context.Context, _ string, _ int64) ([]byte, remote.Version, error) {
	<-ctx.Done()
	return nil, "", ctx.Err()
}

func TestTimeouts(t *testing.T) {
	r := opened(t, slow{newService()}, remote.Options{Timeout: time.Millisecond, Tries: 2, Rest: -1})
	_, err := r.Get(ctx, storetest.KeyOf(1))
	require.ErrorIs(t, err, quant.ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err = opened(t, slow{newService()}, remote.Options{InTransit: 1}).Get(short, storetest.KeyOf(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, quant.ErrUnavailable, "the caller gave up, not the service")
}
