// SPDX-License-Identifier: Apache-2.0

//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serving starts the program as a server, and returns its address and what ends it with a signal.
func serving(t *testing.T, args ...string) (url string, end func(syscall.Signal) int) {
	t.Helper()
	cmd := program(t, append([]string{"serve"}, args...)...)
	var errs lockedBuffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // where a test failed; it has ended otherwise
	require.Eventually(t, func() bool { return listening.MatchString(errs.String()) }, 20*time.Second, time.Millisecond)
	return listening.FindStringSubmatch(errs.String())[1], func(s syscall.Signal) int {
		require.NoError(t, cmd.Process.Signal(s))
		_ = cmd.Wait() // its status says more
		return cmd.ProcessState.ExitCode()
	}
}

type reply struct {
	Choices []struct{ Message struct{ Content string } }
	Usage   struct {
		Details struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

func talk(t *testing.T, url, body string) (r reply) {
	t.Helper()
	res, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	require.NoError(t, err)
	defer res.Body.Close() //nolint:errcheck // it was read
	require.Equal(t, 200, res.StatusCode)
	require.NoError(t, json.NewDecoder(res.Body).Decode(&r))
	return r
}

// Conversations that were saved go on after the server was killed, and all of them after it was told to end.
func TestServe_KilledAndRestarted(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "said")
	args := []string{tinyModel(t), "--addr", "127.0.0.1:0", "--kv-budget", "1MiB", "--parallel", "2", "--window", "32",
		"--segment", "64", "--conversations", folder}
	const clients = 6
	body := func(i int, more string) string {
		return fmt.Sprintf(`{"messages":[{"role":"user","content":"client %d %s"}%s],"max_tokens":4,"temperature":0,
			"logit_bias":{"67":100},"kvist":{"save":true}}`, i, strings.Repeat("told many things ", 20), more)
	}
	more := `,{"role":"assistant","content":"AAAA"},{"role":"user","content":"and?"}` // the answer, by its bias
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, 0} {
		url, end := serving(t, args...)
		for i := range clients {
			r := talk(t, url, body(i, map[bool]string{true: more}[s != syscall.SIGKILL]))
			require.Equal(t, "AAAA", r.Choices[0].Message.Content)
			if s != syscall.SIGKILL {
				require.Greater(t, r.Usage.Details.Cached, 340, "client %d before signal %d", i, s)
			}
		}
		switch s {
		case syscall.SIGKILL:
			require.Equal(t, -1, end(s))
		default:
			require.Equal(t, exitOK, end(syscall.SIGTERM))
		}
	}
}
