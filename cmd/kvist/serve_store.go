// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/kvist-project/kvist/cmd/kvist/stores"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
)

// openShared opens the store that servers share, and asks it for something: a store that does not answer is told before
// the server starts. Later it may go and come back. A step of the server waits for its calls, so they are short.
func openShared(ctx context.Context, url string, log *slog.Logger) (store.Store, error) {
	s, err := stores.Open(ctx, url, remote.Options{Timeout: 5 * time.Second, Tries: 2, Pause: 20 * time.Millisecond,
		Rest: 30 * time.Second, Logger: log})
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
