// SPDX-License-Identifier: Apache-2.0

package check

import (
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/engine/store/remote"
	"github.com/kvist-project/kvist/quant"
)

var benchPage = flag.String("page", "", "file that TestBench writes its table to; without one it makes few calls")

// measure is what calls of one kind took.
type measure struct {
	rates []float64 // MB a second, of the rounds
	calls []time.Duration
}

func (m *measure) add(bytes int, took time.Duration, calls []time.Duration) {
	m.rates = append(m.rates, float64(bytes)/1e6/took.Seconds())
	m.calls = append(m.calls, calls...)
}

// quantile returns the time that a share of the calls took at most, in milliseconds.
func (m *measure) quantile(share float64) float64 {
	slices.Sort(m.calls)
	return float64(m.calls[int(math.Ceil(share*float64(len(m.calls))))-1]) / 1e6
}

func (m *measure) cells() string {
	slices.Sort(m.rates)
	return fmt.Sprintf(" %s | %s | %s |", digits(m.rates[len(m.rates)/2]), digits(m.quantile(0.5)), digits(m.quantile(0.99)))
}

// digits writes three digits, or all before the point.
func digits(x float64) string {
	if x >= 100 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.*f", 2-max(int(math.Floor(math.Log10(x))), 0), x)
}

// timed calls f once for each of n, by so many callers at once.
func timed(t *testing.T, n, callers int, f func(i int) error) (took time.Duration, calls []time.Duration) {
	calls = make([]time.Duration, n)
	var next atomic.Int64
	var wait sync.WaitGroup
	failed := make(chan error, callers)
	began := time.Now()
	for range callers {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				at := time.Now()
				if err := f(i); err != nil {
					failed <- err
					return
				}
				calls[i] = time.Since(at)
			}
		})
	}
	wait.Wait()
	took = time.Since(began)
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	return took, calls
}

// benched opens an empty store of each kind.
func benched(t *testing.T) (names []string, open map[string]func() store.Store) {
	open = map[string]func() store.Store{}
	add := func(name string, f func() store.Store) { names, open[name] = append(names, name), f }
	add("memory", func() store.Store { return store.NewMemory(store.MemoryOptions{}) })
	add("disk", func() store.Store {
		s, err := store.OpenDisk(t.TempDir(), store.DiskOptions{})
		require.NoError(t, err)
		return s
	})
	over := func(s service) func() store.Store {
		return func() store.Store { return openAt(t, s.url(s.addr), remote.Options{}) }
	}
	if path, version := systemPath(); path != "" {
		addr, start := systemServer(t, "--maxmemory", "4gb", "--maxmemory-policy", "noeviction")
		start()
		add(version, over(service{"", addr, redisURL}))
	} else {
		add("miniredis", over(service{"", miniredis.RunT(t).Addr(), redisURL}))
	}
	add("S3 (gofakes3)", over(s3Server(t)))
	add("NATS JetStream 2.14, files", over(natsServer(t)))
	return names, open
}

// systemPath finds the server of the system, and its name with its version.
func systemPath() (path, version string) {
	for _, name := range []string{"valkey-server", "redis-server"} {
		if p, err := exec.LookPath(name); err == nil {
			out, _ := exec.Command(p, "--version").Output() // "Redis server v=7.0.15 sha=..."
			number, _, _ := strings.Cut(strings.TrimSpace(string(out)), " sha")
			_, number, _ = strings.Cut(number, "v=")
			return p, strings.TrimSpace(name + " " + number)
		}
	}
	return "", ""
}

// busy says how much else the machine had to do before.
func busy() string {
	p, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(p)); err == nil && len(f) > 0 {
		return "; load " + f[0] + " before"
	}
	return ""
}

// TestBench measures what the stores of this machine do: megabytes a second, and the time of calls.
func TestBench(t *testing.T) {
	sizes := []struct{ bytes, calls, rounds int }{{64 << 10, 8, 1}}
	if *benchPage != "" {
		sizes = []struct{ bytes, calls, rounds int }{{64 << 10, 1000, 3}, {1 << 20, 200, 3}, {8 << 20, 40, 3}}
	}
	names, open := benched(t)
	var page strings.Builder
	fmt.Fprintf(&page, `Stores on loopback: megabytes a second, and the median and the 99th percentile of the time of a call, in ms.
Made by `+"`make bench-stores`"+` on %d cores (%s/%s), which clients and servers share%s. Redis and
S3 keep the bytes in memory, NATS and disk in files; a Put on disk is durable when it returns. Bytes are random. MB/s is the
median of three rounds, times are of all of their calls. Every Get checks the bytes: SHA-256 beyond the machine, CRC32C on disk.
`, runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, busy())
	for _, callers := range []int{1, 8} {
		fmt.Fprintf(&page, "\n## Callers at once: %d\n\n| store | bytes | put, MB/s | p50 | p99 | get, MB/s | p50 | p99 |\n|---|---|---|---|---|---|---|---|\n", callers)
		for _, name := range names {
			for _, z := range sizes {
				fmt.Fprintf(&page, "| %s | %d KiB |%s\n", name, z.bytes>>10, benchOne(t, open[name], z.bytes, z.calls, z.rounds, callers))
			}
		}
	}
	t.Logf("\n%s", &page)
	require.Equal(t, 2*len(names)*len(sizes), strings.Count(page.String(), " KiB |"))
	if *benchPage != "" {
		require.NoError(t, os.WriteFile(*benchPage, []byte(page.String()), 0o644))
	}
}

// benchOne puts and gets values of a size, and returns what that took as cells of a table.
func benchOne(t *testing.T, open func() store.Store, size, calls, rounds, callers int) string {
	var puts, gets measure
	data := make([][]byte, 8) // few, as making them takes longer than putting them
	for i := range data {
		data[i] = make([]byte, size)
		for at := 0; at < size; at += 32 {
			h := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)<<40|uint64(at)))
			copy(data[i][at:], h[:])
		}
	}
	for round := range rounds {
		s := open()
		key := func(i int) store.Key { return sha256.Sum256([]byte(fmt.Sprint(round, " ", i))) }
		expires := time.Now().Add(time.Hour)
		took, each := timed(t, calls, callers, func(i int) error { return s.Put(ctx, key(i), data[i%len(data)], expires) })
		puts.add(size*calls, took, each)
		took, each = timed(t, calls, callers, func(i int) error {
			p, err := s.Get(ctx, key(i))
			if err == nil && len(p) != size {
				err = quant.ErrCorrupt
			}
			return err
		})
		gets.add(size*calls, took, each)
		for i := range calls {
			require.NoError(t, s.Delete(ctx, key(i)))
		}
		require.NoError(t, s.Close())
	}
	return puts.cells() + gets.cells()
}
