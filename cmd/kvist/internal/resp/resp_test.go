// SPDX-License-Identifier: Apache-2.0

package resp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

var ctx = context.Background()

// serve starts a server and returns where it listens.
func serve(t *testing.T, o Options) (*Server, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, ended := New(o), make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		require.NoError(t, <-ended)
	})
	return s, l.Addr().String()
}

func dial(t *testing.T, addr string, o redis.Options) *redis.Client {
	o.Addr = addr
	c := redis.NewClient(&o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// rows returns numbers in bfloat16, as K and V are.
func rows(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, 0, 2*n)
	for i := range n {
		v := float32(rng.NormFloat64() * math.Exp2(float64(i%64*7%11)))
		p = binary.LittleEndian.AppendUint16(p, uint16(math.Float32bits(v)>>16))
	}
	return p
}

func TestCommands(t *testing.T) {
	var now atomic.Int64
	now.Store(1e18)
	s, addr := serve(t, Options{Now: func() time.Time { return time.Unix(0, now.Load()) }})
	c := dial(t, addr, redis.Options{})
	require.Equal(t, "PONG", c.Ping(ctx).Val())
	_, err := c.Get(ctx, "a").Result()
	require.ErrorIs(t, err, redis.Nil)
	want := rows(1, 50000)
	require.NoError(t, c.Set(ctx, "a", want, 0).Err())
	got, err := c.Get(ctx, "a").Bytes()
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.EqualValues(t, len(want), c.StrLen(ctx, "a").Val())
	require.Zero(t, c.StrLen(ctx, "b").Val())
	require.NoError(t, c.Set(ctx, "empty", "", 0).Err())
	require.Equal(t, "", c.Get(ctx, "empty").Val())
	require.EqualValues(t, 2, c.Exists(ctx, "a", "b", "empty").Val())
	require.Equal(t, []any{string(want), nil, ""}, c.MGet(ctx, "a", "b", "empty").Val())
	require.EqualValues(t, 1, c.Del(ctx, "empty", "b").Val())
	require.EqualValues(t, 1, c.DBSize(ctx).Val())

	require.False(t, c.SetNX(ctx, "a", "other", 0).Val())
	require.True(t, c.SetNX(ctx, "b", "x", time.Minute).Val())
	require.True(t, c.SetXX(ctx, "b", "y", time.Hour).Val())
	require.False(t, c.SetXX(ctx, "c", "y", 0).Val())
	now.Add(int64(59 * time.Minute))
	require.Equal(t, "y", c.Get(ctx, "b").Val())
	now.Add(int64(time.Minute))
	require.ErrorIs(t, c.Get(ctx, "b").Err(), redis.Nil)

	require.NoError(t, c.Set(ctx, "a", want, 0).Err())
	n := s.Counts()
	require.EqualValues(t, 1, n.Same, "it is not packed again")
	require.EqualValues(t, 1, n.Keys)
	require.EqualValues(t, len(want), n.Bytes)
	require.Less(t, n.Packed*13, n.Bytes*10)
	require.Contains(t, c.Info(ctx).Val(), fmt.Sprintf("kvist_packed_bytes:%d\r\n", n.Packed))
	require.NoError(t, c.FlushDB(ctx).Err())
	require.Zero(t, s.Counts().Held)
	require.Zero(t, c.DBSize(ctx).Val())
	for _, bad := range [][]any{{"get"}, {"get", "a", "b"}, {"set", "a", "b", "ex"}, {"set", "a", "b", "px", "-1"}, {"set", "a", "b", "ex", "9999999999999"},
		{"set", "a", "b", "later"}, {"select", "3"}, {"no\x01such", "x"}, {"auth", "x"}} {
		require.ErrorContains(t, c.Do(ctx, bad...).Err(), "ERR", bad)
	}
	require.NoError(t, c.Do(ctx, "select", "0").Err())
}

func TestPassword(t *testing.T) {
	_, addr := serve(t, Options{Password: "right"})
	for protocol := 2; protocol <= 3; protocol++ {
		c := dial(t, addr, redis.Options{Password: "right", Protocol: protocol})
		require.ErrorIs(t, c.Get(ctx, "absent").Err(), redis.Nil)
		require.ErrorContains(t, dial(t, addr, redis.Options{Password: "wrong", Protocol: protocol}).Get(ctx, "a").Err(), "WRONGPASS")
	}
	require.ErrorContains(t, dial(t, addr, redis.Options{}).Get(ctx, "a").Err(), "NOAUTH")
	require.ErrorContains(t, dial(t, addr, redis.Options{Password: "wrong"}).Get(ctx, "a").Err(), "WRONGPASS")
	require.ErrorContains(t, dial(t, addr, redis.Options{Username: "me", Password: "right"}).Get(ctx, "a").Err(), "WRONGPASS")
	require.NoError(t, dial(t, addr, redis.Options{Password: "right"}).Set(ctx, "a", "b", 0).Err())
	require.Equal(t, "b", dial(t, addr, redis.Options{Username: "default", Password: "right"}).Get(ctx, "a").Val())
}

// lines is a writer of events.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) list(t *testing.T) (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		var e Event
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		require.False(t, e.At.IsZero())
		all = append(all, strings.TrimSpace(e.Kind+" "+e.Key+string(e.Raw)+" "+e.Why))
	}
	return all
}

// What was unused for longest goes, the limit holds, and events tell what happened in order.
func TestEviction(t *testing.T) {
	var events lines
	s, addr := serve(t, Options{MaxBytes: 10 * (1000 + 24 + entryBytes + 2), Events: &events, Raw: true})
	c := dial(t, addr, redis.Options{})
	value := func(i int) string { return strings.Repeat(string(rune('a'+i)), 1000) }
	for i := range 10 {
		require.NoError(t, c.Set(ctx, fmt.Sprintf("%02d", i), value(i), 0).Err())
	}
	require.Equal(t, value(0), c.Get(ctx, "00").Val()) // used: 01 is the one unused for longest
	require.NoError(t, c.Set(ctx, "10", value(10), 0).Err())
	require.NoError(t, c.Set(ctx, "\xff!", value(11), 0).Err())
	require.EqualValues(t, 1, c.Exists(ctx, "00").Val())
	require.Zero(t, c.Exists(ctx, "01", "02").Val())
	require.ErrorContains(t, c.Set(ctx, "big", strings.Repeat("x", 20000), 0).Err(), "OOM")
	require.EqualValues(t, 2, s.Counts().Evicted)
	require.LessOrEqual(t, s.Counts().Held, s.o.MaxBytes)
	c.Del(ctx, "05")
	c.FlushAll(ctx)
	require.Equal(t, []string{"removed 01 evicted", "stored 10", "removed 02 evicted", "stored \xff!", "removed 05 deleted", "cleared"},
		events.list(t)[10:])
}

// A thousand connections at once put and get their own values and those of others.
func TestConnections_Thousand(t *testing.T) {
	s, addr := serve(t, Options{Connections: 1000, ValueBytes: 1 << 20})
	var wait sync.WaitGroup
	fail := make(chan error, 1000)
	begin := make(chan struct{})
	for i := range 1000 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				fail <- err
				return
			}
			defer conn.Close()
			<-begin
			r, want := bufio.NewReader(conn), rows(uint64(i%50), 3000)
			for range 3 {
				if _, err = fmt.Fprintf(conn, "*3\r\n$3\r\nSET\r\n$4\r\nk%03d\r\n$%d\r\n%s\r\n*2\r\n$3\r\nGET\r\n$4\r\nk%03d\r\n", i%50, len(want), want,
					i%50); err != nil {
					break
				}
				reply := fmt.Sprintf("+OK\r\n$%d\r\n%s\r\n", len(want), want)
				got := make([]byte, len(reply))
				if _, err = io.ReadFull(r, got); err == nil && string(got) != reply {
					err = errors.New("wrong bytes")
				}
				if err != nil {
					break
				}
			}
			fail <- err
		}()
	}
	close(begin)
	wait.Wait()
	close(fail)
	for err := range fail {
		require.NoError(t, err)
	}
	require.EqualValues(t, 50, s.Counts().Keys)
	require.EqualValues(t, 1000, s.Counts().Connections)
}

// raw is a connection without a client.
func raw(t *testing.T, addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c
}

// What is too large or no command is refused, and the connection ends; others go on.
func TestHostile(t *testing.T) {
	s, addr := serve(t, Options{ValueBytes: 1 << 20, Connections: 50, Stall: 100 * time.Millisecond, Idle: time.Minute})
	c := dial(t, addr, redis.Options{PoolSize: 2})
	require.NoError(t, c.Set(ctx, "a", "b", 0).Err())
	for send, want := range map[string]string{
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1048577\r\n":              "-ERR a string of",
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$99999999999999999999\r\n": "-ERR a string of",
		"*999999999\r\n":                         "-ERR an array of",
		strings.Repeat("x", 200000):              "",
		"*1\r\n:5\r\n":                           "-ERR",
		"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nab": "", // and nothing more: it has stalled
	} {
		conn := raw(t, addr)
		_, err := io.WriteString(conn, send)
		require.NoError(t, err)
		got, _ := io.ReadAll(conn) // until it ends
		require.True(t, strings.HasPrefix(string(got), want), "%.40q: %q", send, got)
		require.Equal(t, "b", c.Get(ctx, "a").Val())
	}
	require.Eventually(t, func() bool { return s.open.Load() <= 2 }, 10*time.Second, time.Millisecond)
	require.Zero(t, s.arriving.held)
	for range 60 {
		raw(t, addr)
	}
	require.Eventually(t, func() bool { return s.Counts().Refused > 0 }, 10*time.Second, time.Millisecond)
	require.Equal(t, "b", c.Get(ctx, "a").Val())
}

// A client that takes no answers is ended, and does not keep others waiting.
func TestSlowClients(t *testing.T) {
	s, addr := serve(t, Options{Stall: 200 * time.Millisecond, Arriving: 3 << 19})
	c := dial(t, addr, redis.Options{ReadTimeout: 20 * time.Second})
	want := rows(1, 1<<18)
	require.NoError(t, c.Set(ctx, "a", want, 0).Err())
	var slow []net.Conn
	for i := range 8 {
		conn := raw(t, addr)
		slow = append(slow, conn)
		text := strings.Repeat("*2\r\n$3\r\nGET\r\n$1\r\na\r\n", 50) // 26 MB of answers
		if i%2 == 1 {
			text = "*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1000000\r\n" // and never the value
		}
		_, err := io.WriteString(conn, text)
		require.NoError(t, err)
	}
	for range 5 {
		require.NoError(t, c.Set(ctx, "c", want, 0).Err())
		got, err := c.Get(ctx, "c").Bytes()
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
	}
	require.Eventually(t, func() bool { return s.open.Load() <= 2 }, 20*time.Second, 10*time.Millisecond)
	require.Len(t, slow, 8)
}

// What is damaged in memory is not served.
func TestDamage(t *testing.T) {
	s, addr := serve(t, Options{})
	c := dial(t, addr, redis.Options{})
	require.NoError(t, c.Set(ctx, "a", rows(1, 5000), 0).Err())
	s.values.mu.Lock()
	x := s.values.at["a"].Value.(*value)
	x.data[len(x.data)/2] ^= 4
	s.values.mu.Unlock()
	require.ErrorIs(t, c.Get(ctx, "a").Err(), redis.Nil)
	require.Zero(t, c.Exists(ctx, "a").Val())
	require.EqualValues(t, 1, s.Counts().Damaged)
}

// The bytes that LMCache's Redis connector has sent, by redis-py, and what Redis has answered: testdata/README.md.
func TestLMCache_RecordedExchange(t *testing.T) {
	_, addr := serve(t, Options{})
	p, err := os.ReadFile("testdata/lmcache.json")
	require.NoError(t, err)
	var turns []struct{ Client, Server []byte }
	require.NoError(t, json.Unmarshal(p, &turns))
	require.Greater(t, len(turns), 8)
	conn := raw(t, addr)
	for i, turn := range turns {
		_, err := conn.Write(turn.Client)
		require.NoError(t, err)
		if bytes.Contains(turn.Client, []byte("HELLO")) { // it tells the version
			got := make([]byte, 4096)
			n, err := conn.Read(got)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(got[:n]), "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"))
			continue
		}
		got := make([]byte, len(turn.Server))
		_, err = io.ReadFull(conn, got)
		require.NoError(t, err)
		require.Equal(t, string(turn.Server), string(got), "turn %d", i)
	}
}
