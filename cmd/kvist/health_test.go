// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// healthy asks by the verb.
func healthy(args ...string) (status int, said string) {
	var out lockedBuffer
	status = run(context.Background(), append([]string{"health"}, args...), strings.NewReader(""), &out, &out)
	return status, out.String()
}

// A server is healthy until it ends, whatever its keys.
func TestHealth_Server(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(keys, []byte("abc\n"), 0o600))
	url, stop := served(t, tinyModel(t), "--addr", "127.0.0.1:0", "--kv-budget", "4MiB", "--keys", keys)
	status, said := healthy(url)
	require.Zero(t, status, said)
	require.Equal(t, "ok\n", said)
	status, said = healthy(url + "/v1/models")
	require.Equal(t, 1, status)
	require.Contains(t, said, "401")
	stop()
	status, said = healthy(url)
	require.Equal(t, 1, status)
	require.Contains(t, said, "refused")
}

func TestHealth_Store(t *testing.T) {
	dir := t.TempDir()
	right, wrong := filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	require.NoError(t, os.WriteFile(right, []byte("se:cr@t\n"), 0o600))
	require.NoError(t, os.WriteFile(wrong, []byte("x\n"), 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	var errs lockedBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"store", "--listen", "127.0.0.1:0", "--password-file", right}, strings.NewReader(""), io.Discard, &errs)
	}()
	at := regexp.MustCompile(`listening on (redis://\S+)`)
	require.Eventually(t, func() bool { return at.MatchString(errs.String()) }, 10*time.Second, time.Millisecond)
	url := at.FindStringSubmatch(errs.String())[1]
	status, said := healthy(url, "--password-file", right)
	require.Zero(t, status, said)
	for _, args := range [][]string{{url}, {url, "--password-file", wrong}} {
		status, said = healthy(args...)
		require.Equal(t, 1, status, said)
	}
	cancel()
	<-ended
	status, _ = healthy(url, "--password-file", right)
	require.Equal(t, 1, status)
}

// What answers otherwise, elsewhere or never is not healthy.
func TestHealth_Others(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":{"message":"the server is ending"}}`)
		case "/moved":
			http.Redirect(w, r, "/fine", http.StatusFound)
		}
	}))
	t.Cleanup(s.Close)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	for url, want := range map[string]string{s.URL: "503 Service Unavailable the server is ending", s.URL + "/moved": "302",
		"http://" + silent.Addr().String(): "deadline", "redis://" + silent.Addr().String(): "timeout"} {
		status, said := healthy(url, "--timeout", "300ms")
		require.Equal(t, 1, status, said)
		require.Contains(t, said, want)
	}
	for _, args := range [][]string{{"ftp://x"}, {"127.0.0.1:8080"}, {"http://a:b%zz@c"}, {s.URL, "--timeout", "0s"}, {s.URL, s.URL}} {
		status, said := healthy(args...)
		require.Equal(t, 2, status, said)
	}
}
