// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Through returns an empty store whose server is reached at an address. A try takes so long at most, a call a few of
// them, and it does not fail at once after another has failed.
type Through func(t *testing.T, addr string, try time.Duration) store.Store

// How long a try takes where it is lost, and where it only waits.
const (
	shortTry = 200 * time.Millisecond
	longTry  = 20 * time.Second
)

// RunFaults checks a store behind a Proxy that delays, cuts and corrupts, and while its server is away. Whatever
// happens, a Get returns the right bytes or an error of package store.
func RunFaults(t *testing.T, server string, open Through) {
	for _, c := range []struct {
		name    string
		try     time.Duration
		trouble Trouble
	}{
		{"Delay", longTry, Trouble{Delay: 2 * time.Millisecond}}, {"Cut", shortTry, Trouble{Cut: 0.06}},
		{"Corrupt", shortTry, Trouble{Corrupt: 0.06}},
		{"All", shortTry, Trouble{Delay: time.Millisecond, Cut: 0.04, Corrupt: 0.04}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := NewProxy(t, server, 7)
			s := open(t, p.Addr(), c.try)
			p.Set(c.trouble)
			failed := trouble(t, s)
			if c.trouble.Cut+c.trouble.Corrupt > 0 {
				require.Positive(t, p.Troubled())
			} else {
				require.Zero(t, failed)
			}
			p.Set(Trouble{})
			heals(t, s)
			require.NoError(t, s.Close())
		})
	}
	t.Run("Away", func(t *testing.T) {
		t.Parallel()
		away(t, server, open)
	})
}

// The keys of trouble, and the sizes of their bytes: from one piece of a connection to many.
const troubled = 24

func troubleSize(i int) int { return 10 + i*i*i*20 }

// known are the errors that a caller can tell apart.
var known = []error{quant.ErrUnavailable, quant.ErrUnsupported, quant.ErrCorrupt, quant.ErrVersion, quant.ErrTooLarge, quant.ErrFull,
	fs.ErrNotExist, fs.ErrExist, context.DeadlineExceeded}

// typed checks that an error says what happened.
func typed(t *testing.T, err error) {
	t.Helper()
	var at *store.Error
	require.ErrorAs(t, err, &at)
	for _, k := range known {
		if errors.Is(err, k) {
			return
		}
	}
	require.Fail(t, "an error of no category", err.Error())
}

// trouble puts, gets and deletes, and returns how many calls have failed.
func trouble(t *testing.T, s store.Store) (failed int) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 4 * troubled {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		i := rng.IntN(troubled)
		var err error
		switch rng.IntN(5) {
		case 0, 1:
			err = s.Put(ctx, KeyOf(i), Bytes(i, troubleSize(i)), never)
		case 2:
			if rng.IntN(4) == 0 {
				err = s.Delete(ctx, KeyOf(i))
			}
		default:
			var got []byte
			if got, err = s.Get(ctx, KeyOf(i)); err == nil {
				require.Equal(t, Bytes(i, troubleSize(i)), got, "wrong bytes under key %d", i)
			}
		}
		cancel()
		if err != nil && !isAbsent(err) {
			failed++
			typed(t, err)
		}
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.Sys, before.Sys+512<<20, "a damaged length must not be allocated")
	return failed
}

// heals checks that what trouble has left is told from what is right, and put again.
func heals(t *testing.T, s store.Store) {
	ctx := context.Background()
	for i := range troubled {
		eventually(t, func() error { return s.Put(ctx, KeyOf(i), Bytes(i, troubleSize(i)), never) })
		got, err := s.Get(ctx, KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, Bytes(i, troubleSize(i)), got)
	}
	for range list(t, s) {
	}
}

// away checks a store of which the server says nothing, is gone, and comes back.
func away(t *testing.T, server string, open Through) {
	p := NewProxy(t, server, 8)
	s, ctx := open(t, p.Addr(), shortTry), context.Background()
	require.NoError(t, s.Put(ctx, KeyOf(1), Bytes(1, 1000), never))
	for _, trouble := range []Trouble{{Silent: true}, {Dead: true}} {
		p.Set(trouble)
		for range 2 {
			_, err := s.Get(ctx, KeyOf(1))
			require.ErrorIs(t, err, quant.ErrUnavailable)
			typed(t, err)
			require.ErrorIs(t, s.Put(ctx, KeyOf(2), nil, never), quant.ErrUnavailable)
		}
		p.Set(Trouble{Dead: true}) // what was silent does not come back to life
		p.Set(Trouble{})
		eventually(t, func() error { _, err := s.Get(ctx, KeyOf(1)); return err })
		got, err := s.Get(ctx, KeyOf(1))
		require.NoError(t, err)
		require.Equal(t, Bytes(1, 1000), got)
	}
	p.Set(Trouble{Silent: true})
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := s.Get(short, KeyOf(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	p.Set(Trouble{Dead: true})
	require.NoError(t, s.Close())
}

// eventually calls f until it succeeds.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	require.NoError(t, err)
}
