// SPDX-License-Identifier: Apache-2.0

// Package check holds the stores beyond the machine against their servers: gofakes3, miniredis and nats-server in this
// process, and a redis-server or valkey-server of the system where there is one. It is a module of its own, so that the
// servers are no dependency of kvist.
package check

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/stores"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/engine/store/storetest"
	"github.com/kvist-project/kvist/quant"
)

var ctx = context.Background()

// service is a server: its address, and the URL of a store on it behind an address.
type service struct {
	name string
	addr string
	url  func(addr string) string
}

// services starts the servers.
func services(t *testing.T) []service {
	return []service{s3Server(t), {"miniredis", miniredis.RunT(t).Addr(), redisURL}, natsServer(t)}
}

func redisURL(addr string) string { return "redis://" + addr + "/0" }

func TestMain(m *testing.M) {
	_ = os.Setenv("AWS_ACCESS_KEY_ID", "key")
	_ = os.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	os.Exit(m.Run())
}

func s3Server(t *testing.T) service {
	mem := s3mem.New()
	require.NoError(t, mem.CreateBucket("kvist"))
	s := httptest.NewUnstartedServer(gofakes3.New(mem).Server())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return service{"s3", strings.TrimPrefix(s.URL, "http://"), func(addr string) string { return "s3://kvist?endpoint=http://" + addr }}
}

func natsServer(t *testing.T) service {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true,
		NoLog: true, DontListen: false})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(10*time.Second))
	return service{"nats", s.Addr().String(), func(addr string) string { return "nats://" + addr + "/kvist" }}
}

// systemServer starts a redis-server or valkey-server of the system. start starts it again with what it had on disk.
func systemServer(t *testing.T, args ...string) (addr string, start func() (kill func())) {
	path, _ := systemPath()
	if path == "" {
		t.Skip("neither valkey-server nor redis-server is installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr = l.Addr().String()
	require.NoError(t, l.Close())
	_, port, _ := net.SplitHostPort(addr)
	dir, err := os.MkdirTemp("", "kvist-redis")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return addr, func() func() {
		cmd := exec.Command(path, append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", ""}, args...)...)
		require.NoError(t, cmd.Start())
		dead := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		t.Cleanup(dead)
		require.Eventually(t, func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				_ = c.Close()
			}
			return err == nil
		}, 10*time.Second, 10*time.Millisecond)
		return dead
	}
}

var prefixes atomic.Int64

// openAt opens an empty store, which the caller closes.
func openAt(t *testing.T, url string, o remote.Options) store.Store {
	o.Prefix = fmt.Sprintf("test/%d/", prefixes.Add(1))
	s, err := stores.Open(ctx, url, o)
	require.NoError(t, err)
	return s
}

// open opens an empty store.
func open(t *testing.T, url string, o remote.Options) store.Store {
	s := openAt(t, url, o)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// suites runs both suites.
func suites(t *testing.T, s service) {
	t.Run("suite", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T, now func() time.Time, most int64) store.Store {
			return open(t, s.url(s.addr), remote.Options{Now: now, MaxBytes: most})
		})
	})
	t.Run("faults", func(t *testing.T) {
		storetest.RunFaults(t, s.addr, func(t *testing.T, addr string, try time.Duration) store.Store {
			return open(t, s.url(addr), remote.Options{Timeout: try, Tries: 3, Pause: 5 * time.Millisecond, Rest: -1})
		})
	})
}

func TestSuites(t *testing.T) {
	for _, s := range services(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			suites(t, s)
		})
	}
}

func TestSuites_SystemServer(t *testing.T) {
	t.Parallel()
	addr, start := systemServer(t)
	start()
	suites(t, service{"redis", addr, redisURL})
}

// A server that is killed and started again has what it had; until then calls fail by name.
func TestSystemServer_KilledAndBack(t *testing.T) {
	addr, start := systemServer(t, "--appendonly", "yes", "--appendfsync", "always")
	kill := start()
	s := open(t, redisURL(addr), remote.Options{Timeout: time.Second, Tries: 2, Pause: time.Millisecond, Rest: 20 * time.Millisecond})
	for i := range 20 {
		require.NoError(t, s.Put(ctx, storetest.KeyOf(i), storetest.Bytes(i, 10000*i), time.Time{}))
	}
	kill()
	_, err := s.Get(ctx, storetest.KeyOf(1))
	require.ErrorIs(t, err, quant.ErrUnavailable)
	start()
	require.Eventually(t, func() bool { _, err := s.Get(ctx, storetest.KeyOf(1)); return err == nil }, 10*time.Second, time.Millisecond)
	for i := range 20 {
		got, err := s.Get(ctx, storetest.KeyOf(i))
		require.NoError(t, err)
		require.Equal(t, storetest.Bytes(i, 10000*i), got)
	}
}

// A server that is full says so; what is there stays.
func TestSystemServer_Full(t *testing.T) {
	addr, start := systemServer(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
	start()
	s, n := open(t, redisURL(addr), remote.Options{}), 0
	var err error
	for ; err == nil && n < 100; n++ {
		err = s.Put(ctx, storetest.KeyOf(n), storetest.Bytes(n, 1<<19), time.Time{})
	}
	require.ErrorIs(t, err, quant.ErrFull)
	require.Greater(t, n, 4)
	got, err := s.Get(ctx, storetest.KeyOf(0))
	require.NoError(t, err)
	require.Equal(t, storetest.Bytes(0, 1<<19), got)
}

// What a server removes by its own clock is gone there, too.
func TestExpiry_OfTheServer(t *testing.T) {
	m := miniredis.RunT(t)
	s := open(t, redisURL(m.Addr()), remote.Options{})
	require.NoError(t, s.Put(ctx, storetest.KeyOf(1), []byte("short"), time.Now().Add(time.Hour)))
	require.Len(t, m.Keys(), 1)
	m.FastForward(2 * time.Hour)
	require.Empty(t, m.Keys())
	_, err := s.Get(ctx, storetest.KeyOf(1))
	require.Error(t, err)
}

func TestURLs(t *testing.T) {
	for _, url := range []string{"", "::", "http://x", "s3://kvist?endpoint=nowhere", "s3://kvist?no=1", "redis://h/x", "nats://127.0.0.1:1/a b",
		"file://host/x"} {
		_, err := stores.Open(ctx, url, remote.Options{})
		require.Error(t, err, url)
	}
	_, err := stores.Open(ctx, "redis://user:hunter2@h:port/0", remote.Options{})
	require.ErrorIs(t, err, quant.ErrShape)
	require.NotContains(t, err.Error(), "hunter2")
	s, err := stores.Open(ctx, "file://"+t.TempDir(), remote.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestRefusals(t *testing.T) {
	m := miniredis.RunT(t)
	m.RequireAuth("right")
	for _, c := range []struct {
		url string
		is  error
	}{
		{"redis://:wrong@" + m.Addr(), quant.ErrUnsupported}, {"redis://" + m.Addr(), quant.ErrUnsupported},
		{strings.Replace(s3Server(t).url(s3Server(t).addr), "s3://kvist", "s3://absent", 1), quant.ErrUnsupported},
	} {
		s, err := stores.Open(ctx, c.url, remote.Options{})
		require.NoError(t, err)
		require.ErrorIs(t, s.Put(ctx, storetest.KeyOf(1), nil, time.Time{}), c.is, c.url)
	}
	s, err := stores.Open(ctx, "redis://:right@"+m.Addr()+"?prefix=a", remote.Options{})
	require.NoError(t, err)
	require.NoError(t, s.Put(ctx, storetest.KeyOf(1), nil, time.Time{}))
	require.Equal(t, []string{"a/kvist/1/" + storetest.KeyOf(1).String()}, m.Keys())
}
