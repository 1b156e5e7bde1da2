// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// The verb serves Redis' protocol until it is told to end, and writes events.
func TestStore_Listens(t *testing.T) {
	dir := t.TempDir()
	password, events := filepath.Join(dir, "password"), filepath.Join(dir, "events")
	require.NoError(t, os.WriteFile(password, []byte("secret\n"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	var errs lockedBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"store", "--listen", "127.0.0.1:0", "--max", "1MiB", "--password-file", password, "--events", events},
			strings.NewReader(""), io.Discard, &errs)
	}()
	at := regexp.MustCompile(`listening on redis://(\S+)`)
	require.Eventually(t, func() bool { return at.MatchString(errs.String()) }, 10*time.Second, time.Millisecond)
	c := redis.NewClient(&redis.Options{Addr: at.FindStringSubmatch(errs.String())[1], Password: "secret"})
	require.NoError(t, c.Set(ctx, "key", strings.Repeat("abcd", 1000), 0).Err())
	require.Equal(t, strings.Repeat("abcd", 1000), c.Get(ctx, "key").Val())
	require.NoError(t, c.Close())
	cancel()
	<-ended
	p, err := os.ReadFile(events)
	require.NoError(t, err)
	require.Contains(t, string(p), `{"event":"stored","key":"key","bytes":4000,`)
}

func TestStore_Refused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, args := range [][]string{{"--max", "10%"}, {"--max", "0"}, {"--value-max", "x"}, {"--connections", "0"}, {"--idle", "0s"},
		{"--password-file", empty}, {"extra"}} {
		require.Equal(t, 2, run(context.Background(), append([]string{"store"}, args...), strings.NewReader(""), io.Discard, io.Discard), args)
	}
}
