// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/engine/store/storetest"
)

// expiring is a service that removes what has expired by itself.
type expiring struct{ *service }

func (expiring) Expires() bool { return true }

// Sweep removes what has expired, object by object with pauses, and nothing else; a service that does so itself is not
// asked.
func TestSweep(t *testing.T) {
	clock, ctx, objects := storetest.NewClock(), context.Background(), newService()
	s, err := remote.Open(ctx, objects, remote.Options{Now: clock.Now, SweepPause: 5 * time.Millisecond, MaxBytes: 1 << 20})
	require.NoError(t, err)
	for i := range 20 {
		require.NoError(t, s.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, 100), clock.Now().Add(time.Duration(1+i%2)*time.Hour)))
	}
	clock.Advance(90 * time.Minute)
	require.Len(t, objects.at, 20)
	itself, err := remote.Open(ctx, expiring{objects}, remote.Options{Now: clock.Now})
	require.NoError(t, err)
	calls := objects.calls.Load()
	require.NoError(t, itself.Sweep(ctx))
	require.Equal(t, calls, objects.calls.Load())

	short, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Sweep(short), context.DeadlineExceeded)
	require.Greater(t, len(objects.at), 10, "it takes its time")
	began := time.Now()
	require.NoError(t, s.Sweep(ctx))
	require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
	require.Len(t, objects.at, 10)
	for i := 1; i < 20; i += 2 {
		got, err := s.Get(ctx, storetest.KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, storetest.Bytes(i, 100), got)
	}
	require.NoError(t, s.Close())
}
