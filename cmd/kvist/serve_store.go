// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/kvist-project/kvist/cmd/kvist/stores"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
)

// openShared opens the store that servers share, and asks it for something: a store that does not answer is told before
// the server starts. Later it may go and come back. A step of the server waits for its calls, so they are short.
func openShared(ctx context.Context, url string, log *slog.Logger) (store.Store, error) {
	s, err := stores.Open(ctx, url, remote.Options{Timeout: 5 * time.Second, Tries: 2, Pause: 20 * time.Millisecond,
		Rest: 30 * time.Second, SweepPause: 10 * time.Millisecond, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("--store: %w", err)
	}
	var nothing store.Key
	_, _ = rand.Read(nothing[:]) // never fails
	if _, err := s.Get(ctx, nothing); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("--store: %w", err), s.Close())
	}
	return s, nil
}

// sweepEvery is how often a server removes what has expired in the store: not all servers of it in the same minute.
const sweepEvery = time.Hour

// sweepShared removes what has expired, again and again, until it is told to stop, and waits then. Without it, services
// that remove nothing by themselves, as S3 does not without a rule of the bucket, would keep it for ever.
func sweepShared(ctx context.Context, s store.Store, every time.Duration, log *slog.Logger) (stop func()) {
	sweeper, ok := s.(store.Sweeper)
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(every/2 + mathrand.N(every)):
			}
			if err := sweeper.Sweep(ctx); err != nil && ctx.Err() == nil { // the store may come back
				log.Warn("kvist: what has expired in the store is not removed", "error", err)
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
