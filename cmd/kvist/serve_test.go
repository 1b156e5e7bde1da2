// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lockedBuffer is a buffer that is written and read at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var listening = regexp.MustCompile(`listening on (http://\S+)`)

// The verb serves until it is told to end, and takes keys from a file.
func TestServe_Listens(t *testing.T) {
	m := tinyModel(t)
	keys := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(keys, []byte("# ours\nabc\n\n"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	var errs lockedBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", m, "--addr", "127.0.0.1:0", "--kv-budget", "4MiB", "--keys", keys, "--name", "it"},
			strings.NewReader(""), io.Discard, &errs)
	}()
	require.Eventually(t, func() bool { return listening.MatchString(errs.String()) }, 10*time.Second, time.Millisecond)
	url := listening.FindStringSubmatch(errs.String())[1]
	for key, want := range map[string]int{"": 401, "abc": 200, "# ours": 401} {
		req, err := http.NewRequest("POST", url+"/v1/chat/completions",
			strings.NewReader(`{"model":"it","messages":[{"role":"user","content":"hi"}],"max_tokens":3}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, want, res.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	select {
	case status := <-ended:
		require.Equal(t, exitInterrupted, status, errs.String())
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not end")
	}
}

func TestServe_WrongUse(t *testing.T) {
	m := tinyModel(t)
	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.WriteFile(empty, []byte("# none\n"), 0o600))
	for _, c := range []struct {
		status int
		args   []string
		text   string
	}{
		{exitUsage, []string{m, "--parallel", "0"}, "--parallel"},
		{exitUsage, []string{m, "--fade", "2"}, "--fade"},
		{exitUsage, []string{m, "--timeout", "-1s"}, "--timeout"},
		{exitUsage, []string{m, "--keys", ""}, "--keys"},
		{exitUsage, []string{m, "--addr", "127.0.0.1:0", "--conversations-max", "50%"}, "--conversations-max"},
		{exitUsage, []string{m, "--addr", "127.0.0.1:0", "--conversations-max", "1k"}, "--conversations-max"},
		{exitFailed, []string{m, "--keys", empty}, "no key"},
		{exitFailed, []string{m, "--keys", empty + "x"}, "no such file"},
		{exitFailed, []string{m, "--addr", "nowhere.invalid:0"}, "nowhere"},
		{exitUsage, []string{m, "--addr", "127.0.0.1:0", "--kv-budget", "12q"}, "--kv-budget"},
	} {
		var errs bytes.Buffer
		status := run(context.Background(), append([]string{"serve"}, c.args...), strings.NewReader(""), io.Discard, &errs)
		require.Equal(t, c.status, status, "%v: %s", c.args, errs.String())
		require.Contains(t, errs.String(), c.text, c.args)
	}
}

// A connection gives its slot back once, whoever closes it.
func TestLimitListener_ClosedTwice(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := limitTo(inner, 1)
	defer l.Close() //nolint:errcheck // nothing was written
	for range 20 {
		c, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		taken, err := l.Accept()
		require.NoError(t, err)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _ = taken.Close() })
		}
		wg.Wait()
		require.NoError(t, c.Close())
	}
}
