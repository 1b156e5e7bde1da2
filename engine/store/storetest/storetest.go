// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Clock is a time that only the test moves.
type Clock struct{ at atomic.Int64 }

// NewClock returns a clock at some time.
func NewClock() *Clock {
	c := &Clock{}
	c.at.Store(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	return c
}

// Now returns the time.
func (c *Clock) Now() time.Time { return time.Unix(0, c.at.Load()) }

// Advance moves the time on.
func (c *Clock) Advance(d time.Duration) { c.at.Add(int64(d)) }

// Open returns an empty store for a test. maxBytes is its size limit, 0 for none.
type Open func(t *testing.T, now func() time.Time, maxBytes int64) store.Store

// KeyOf returns a key for a number.
func KeyOf(n int) (k store.Key) {
	binary.LittleEndian.PutUint64(k[:], uint64(n)+1)
	return k
}

// Bytes returns n bytes that are a function of a number.
func Bytes(seed, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	p := make([]byte, n)
	_, _ = rng.Read(p)
	return p
}

// Run checks a store.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open Open)
	}{
		{"RoundTrip", roundTrip}, {"Immutable", immutable}, {"Expiry", expiry}, {"Limit", limit}, {"Closed", closed},
		{"Concurrent", concurrent}, {"Race", race},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open) })
	}
}

var never time.Time

// list returns the sizes of what a store lists.
func list(t *testing.T, s store.Store) map[store.Key]store.Info {
	all := map[store.Key]store.Info{}
	for x, err := range s.List(context.Background()) {
		require.NoError(t, err)
		require.NotContains(t, all, x.Key)
		all[x.Key] = x
	}
	return all
}

func roundTrip(t *testing.T, open Open) {
	s, ctx := open(t, time.Now, 0), context.Background()
	require.Empty(t, list(t, s))
	_, err := s.Get(ctx, KeyOf(0))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, s.Delete(ctx, KeyOf(0)), "what is not there")
	sizes := []int{0, 1, 15, 16, 17, 1000, 100000}
	for i, n := range sizes {
		data := Bytes(i, n)
		require.NoError(t, s.Put(ctx, KeyOf(i), data, never))
		clear(data) // they may be reused
	}
	for range 2 {
		for i, n := range sizes {
			got, err := s.Get(ctx, KeyOf(i))
			require.NoError(t, err)
			require.Equal(t, Bytes(i, n), got)
			clear(got) // they belong to the caller
		}
	}
	all := list(t, s)
	require.Len(t, all, len(sizes))
	for i, n := range sizes {
		require.EqualValues(t, n, all[KeyOf(i)].Bytes)
		require.True(t, all[KeyOf(i)].Expires.IsZero())
	}
	require.NoError(t, s.Delete(ctx, KeyOf(3)))
	_, err = s.Get(ctx, KeyOf(3))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Len(t, list(t, s), len(sizes)-1)
	for range s.List(ctx) { // a caller may stop
		break
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, s.Put(gone, KeyOf(77), nil, never), context.Canceled)
	_, err = s.Get(gone, KeyOf(1))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, s.Close())
}

func immutable(t *testing.T, open Open) {
	s, ctx := open(t, time.Now, 0), context.Background()
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(1, 500), never))
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(1, 500), never))
	for _, other := range [][]byte{Bytes(2, 500), Bytes(1, 499), nil} {
		err := s.Put(ctx, KeyOf(1), other, never)
		require.ErrorIs(t, err, fs.ErrExist)
		require.ErrorContains(t, err, KeyOf(1).String()[:16])
	}
	got, err := s.Get(ctx, KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, Bytes(1, 500), got)
	require.NoError(t, s.Delete(ctx, KeyOf(1)))
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(2, 7), never), "after it was deleted")
	got, err = s.Get(ctx, KeyOf(1))
	require.NoError(t, err)
	require.Equal(t, Bytes(2, 7), got)
	require.NoError(t, s.Close())
}

func expiry(t *testing.T, open Open) {
	clock := NewClock()
	s, ctx := open(t, clock.Now, 0), context.Background()
	in := func(d time.Duration) time.Time { return clock.Now().Add(d) }
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(1, 10), in(time.Hour)))
	require.NoError(t, s.Put(ctx, KeyOf(2), Bytes(2, 10), in(time.Hour)))
	require.NoError(t, s.Put(ctx, KeyOf(2), Bytes(2, 10), in(3*time.Hour)))
	require.NoError(t, s.Put(ctx, KeyOf(2), Bytes(2, 10), in(time.Minute)), "the later time holds")
	require.NoError(t, s.Put(ctx, KeyOf(3), Bytes(3, 10), never))
	require.NoError(t, s.Put(ctx, KeyOf(3), Bytes(3, 10), in(time.Minute)))
	require.True(t, list(t, s)[KeyOf(1)].Expires.Equal(in(time.Hour)))
	require.True(t, list(t, s)[KeyOf(2)].Expires.Equal(in(3*time.Hour)))
	require.True(t, list(t, s)[KeyOf(3)].Expires.IsZero())
	clock.Advance(2 * time.Hour)
	_, err := s.Get(ctx, KeyOf(1))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Len(t, list(t, s), 2)
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(9, 10), in(time.Hour)), "other bytes after expiry")
	clock.Advance(2 * time.Hour)
	require.Len(t, list(t, s), 1)
	if sweeper, ok := s.(store.Sweeper); ok {
		require.NoError(t, sweeper.Sweep(ctx))
		require.Len(t, list(t, s), 1)
		got, err := s.Get(ctx, KeyOf(3))
		require.NoError(t, err)
		require.Equal(t, Bytes(3, 10), got)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, sweeper.Sweep(ended), context.Canceled)
	}
	require.NoError(t, s.Close())
}

func limit(t *testing.T, open Open) {
	const most = 1 << 20
	clock := NewClock()
	s, ctx := open(t, clock.Now, most), context.Background()
	require.ErrorIs(t, s.Put(ctx, KeyOf(0), make([]byte, 2*most), never), quant.ErrTooLarge)
	n := 0
	var err error
	for ; err == nil && n < 1000; n++ {
		err = s.Put(ctx, KeyOf(n), Bytes(n, 10000), clock.Now().Add(time.Duration(1+n%2)*time.Hour))
	}
	require.ErrorIs(t, err, quant.ErrFull)
	n--
	require.Greater(t, n, most/2/10000, "half of the limit can be used")
	require.Less(t, n, most/10000)
	for i := range n { // what is there stays
		got, err := s.Get(ctx, KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, Bytes(i, 10000), got)
	}
	require.NoError(t, s.Delete(ctx, KeyOf(1)))
	require.NoError(t, s.Delete(ctx, KeyOf(3)))
	require.NoError(t, s.Put(ctx, KeyOf(5000), Bytes(1, 10000), never), "what was deleted leaves room")
	clock.Advance(90 * time.Minute)
	for i := range n / 3 { // so does what has expired
		require.NoError(t, s.Put(ctx, KeyOf(6000+i), Bytes(i, 10000), never))
	}
	for i := range 400 { // for ever
		require.NoError(t, s.Put(ctx, KeyOf(7000+i), Bytes(i, 10000), never))
		require.NoError(t, s.Delete(ctx, KeyOf(7000+i)))
	}
	for i := range n / 3 {
		got, err := s.Get(ctx, KeyOf(6000+i))
		require.NoError(t, err)
		require.Equal(t, Bytes(i, 10000), got)
	}
	require.NoError(t, s.Close())
}

func closed(t *testing.T, open Open) {
	s, ctx := open(t, time.Now, 0), context.Background()
	require.NoError(t, s.Put(ctx, KeyOf(1), nil, never))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Put(ctx, KeyOf(1), nil, never), quant.ErrClosed)
	require.ErrorIs(t, s.Delete(ctx, KeyOf(1)), quant.ErrClosed)
	_, err := s.Get(ctx, KeyOf(1))
	require.ErrorIs(t, err, quant.ErrClosed)
	for _, err := range s.List(ctx) {
		require.ErrorIs(t, err, quant.ErrClosed)
	}
}

// concurrent has many goroutines put, get and delete under the same keys.
func concurrent(t *testing.T, open Open) {
	s, ctx := open(t, time.Now, 4<<20), context.Background()
	var wait sync.WaitGroup
	fail := make(chan error, 8)
	for g := range 8 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 200 {
				i := rng.IntN(20)
				var err error
				switch rng.IntN(3) {
				case 0:
					err = s.Put(ctx, KeyOf(i), Bytes(i, 1000+i), never)
				case 1:
					err = s.Delete(ctx, KeyOf(i))
				default:
					var got []byte
					if got, err = s.Get(ctx, KeyOf(i)); err == nil && string(got) != string(Bytes(i, 1000+i)) {
						err = fmt.Errorf("wrong bytes under key %d", i)
					} else if isAbsent(err) {
						err = nil
					}
				}
				if err != nil {
					fail <- err
					return
				}
			}
		}()
	}
	wait.Wait()
	close(fail)
	require.NoError(t, <-fail)
	require.NoError(t, s.Close())
}

// race has many goroutines put different bytes under the same keys: one of them wins, the others are told.
func race(t *testing.T, open Open) {
	s, ctx := open(t, time.Now, 0), context.Background()
	const writers, keys = 6, 8
	var won [keys][writers]bool
	var wait sync.WaitGroup
	fail := make(chan error, writers)
	for g := range writers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for i := range keys {
				err := s.Put(ctx, KeyOf(i), Bytes(100*i+g, 90000*(i%2)+500), never)
				won[i][g] = err == nil
				if err != nil && !errors.Is(err, fs.ErrExist) {
					fail <- err
				}
			}
		}()
	}
	wait.Wait()
	close(fail)
	require.NoError(t, <-fail)
	for i := range keys {
		winner := -1
		for g, w := range won[i] {
			if w {
				require.Equal(t, -1, winner, "two won key %d", i)
				winner = g
			}
		}
		require.GreaterOrEqual(t, winner, 0, "nobody won key %d", i)
		got, err := s.Get(ctx, KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, Bytes(100*i+winner, 90000*(i%2)+500), got)
	}
	require.NoError(t, s.Close())
}
