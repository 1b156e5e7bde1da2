// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

// served starts the verb and returns its URL and what ends it.
func served(t *testing.T, args ...string) (url string, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var errs lockedBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"serve"}, args...), strings.NewReader(""), io.Discard, &errs)
	}()
	require.Eventually(t, func() bool { return listening.MatchString(errs.String()) }, 20*time.Second, time.Millisecond, errs.String())
	return listening.FindStringSubmatch(errs.String())[1], func() {
		cancel()
		<-ended
	}
}

// A server finds in the store what another one has computed, until the conversation is deleted there; each has a folder
// of its own.
func TestServe_Store(t *testing.T) {
	m, shared := tinyModel(t), "file://"+t.TempDir()
	ask := func(url string) (cached int, id string) {
		body := `{"messages":[{"role":"user","content":"` + strings.Repeat("a long beginning ", 60) + `"}],"max_tokens":4,"temperature":0}`
		r, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
		require.NoError(t, err)
		defer r.Body.Close()
		var a struct {
			Kvist struct{ Conversation string }
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		require.NoError(t, json.NewDecoder(r.Body).Decode(&a))
		return a.Usage.Details.Cached, a.Kvist.Conversation
	}
	args := []string{m, "--addr", "127.0.0.1:0", "--kv-budget", "16MiB", "--store", shared}
	serve := func() (url string, stop func()) {
		return served(t, append(args, "--conversations", t.TempDir())...)
	}
	url, stop := serve()
	n, _ := ask(url)
	require.Zero(t, n)
	stop()
	url, stop = serve()
	n, id := ask(url)
	require.GreaterOrEqual(t, n, 512)
	req, err := http.NewRequest("DELETE", url+"/v1/kvist/conversations/"+id, nil)
	require.NoError(t, err)
	r, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	require.Less(t, r.StatusCode, 300)
	stop()
	url, stop = serve()
	n, _ = ask(url)
	require.Zero(t, n)
	stop()
}

func TestServe_StoreRefused(t *testing.T) {
	m := tinyModel(t)
	for _, c := range []struct{ url, want string }{{"http://x", "is no store"}, {"redis://127.0.0.1:1", "refused"}, {"file:///dev/null/x", "--store"}} {
		var errs lockedBuffer
		require.NotZero(t, run(context.Background(), []string{"serve", m, "--addr", "127.0.0.1:0", "--store", c.url}, strings.NewReader(""),
			io.Discard, &errs))
		require.Contains(t, errs.String(), c.want)
	}
}

// failsOnce is a store whose first sweep fails.
type failsOnce struct {
	*store.Memory
	sweeps atomic.Int64
}

func (f *failsOnce) Sweep(ctx context.Context) error {
	if f.sweeps.Add(1) == 1 {
		return quant.ErrUnavailable
	}
	return f.Memory.Sweep(ctx)
}

// A server removes what has expired in the store, goes on after a failure, and ends when it is told to.
func TestServe_Sweeps(t *testing.T) {
	clock, ctx := storetest.NewClock(), context.Background()
	st := &failsOnce{Memory: store.NewMemory(store.MemoryOptions{Now: clock.Now})}
	require.NoError(t, st.Put(ctx, storetest.KeyOf(1), []byte("a day old"), clock.Now().Add(time.Hour)))
	require.NoError(t, st.Put(ctx, storetest.KeyOf(2), []byte("new"), clock.Now().Add(48*time.Hour)))
	clock.Advance(24 * time.Hour)
	both := st.Held()
	var errs lockedBuffer
	stop := sweepShared(ctx, st, time.Millisecond, slog.New(slog.NewTextHandler(&errs, nil)))
	require.Eventually(t, func() bool { return st.Held() < both }, 10*time.Second, time.Millisecond)
	require.Contains(t, errs.String(), "is not removed")
	stop()
	n := st.sweeps.Load()
	time.Sleep(5 * time.Millisecond)
	require.Equal(t, n, st.sweeps.Load())
	_, err := st.Get(ctx, storetest.KeyOf(2))
	require.NoError(t, err)
}
