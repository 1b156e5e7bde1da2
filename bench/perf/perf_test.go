// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

func open(t *testing.T) *cpu.Backend {
	t.Helper()
	be, err := cpu.Open(cpu.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, be.Close()) })
	return be
}

// counting is a backend that counts the rows that it attends to, and the blocks that it sees.
type counting struct {
	backend.Backend
	rows int
	seen map[string]bool
}

func (c *counting) Attend(ctx context.Context, q *backend.Queries, v backend.View, to backend.Attention) error {
	for _, i := range q.BlockIdx {
		b, ok := v.Block(int(i))
		if !ok {
			return fmt.Errorf("no block %d: %w", i, quant.ErrShape)
		}
		c.rows += int(b.Rows)
		c.seen[fmt.Sprint(b.K.Data.Off)] = true
	}
	return c.Backend.Attend(ctx, q, v, to)
}

// Attention is over as many rows as its result says, and goes through all of the working set.
func TestAttend_CountsItsRows(t *testing.T) {
	be := &counting{Backend: open(t), seen: map[string]bool{}}
	e, err := newEnv(Options{Backend: be, Quick: true, WorkingSet: 8 << 20})
	require.NoError(t, err)
	for _, c := range Codings() {
		clear(be.seen)
		r, err := newRig(t.Context(), e, Shape{64, 3, 3}, c)
		require.NoError(t, err)
		w := r.attend(1024, false)
		require.NotNil(t, w)
		require.Equal(t, 3*1024.0, w.Units)
		be.rows = 0
		for n := 0; n < r.blocks*r.rows/(3*1024); n++ {
			require.NoError(t, w.Run(t.Context()))
		}
		require.Equal(t, int(w.Units), be.rows/(r.blocks*r.rows/(3*1024)))
		require.Greater(t, float64(len(be.seen))*r.bytes, 0.9*float64(e.WorkingSet)*0.9, c)
		require.NoError(t, r.table.Close())
	}
	require.NoError(t, e.close())
	require.Nil(t, (&rig{env: e, shape: Shape{64, 3, 3}, rows: 32, blocks: 10}).attend(1024, false), "no room for a head")
}

// A mix of kvist takes the rate that its name says, everything counted.
func TestMix_Rates(t *testing.T) {
	for _, dim := range []int{64, 128, 256} {
		for _, c := range Codings()[3:] {
			const table = 40
			kinds, err := c.kinds(dim, table)
			require.NoError(t, err)
			bytes, values := 0, 0
			for _, k := range kinds {
				bytes += k.k.PackedBytes(k.rows, dim) + k.v.PackedBytes(k.rows, dim) + k.rows*posBytes + table
				values += 2 * k.rows * dim
			}
			var rate float64
			_, err = fmt.Sscanf(string(c), "kvist-%g", &rate)
			require.NoError(t, err)
			bits := 8 * float64(bytes) / float64(values)
			require.LessOrEqual(t, bits, rate, "%s %d", c, dim)
			require.Greater(t, bits, 0.97*rate, "%s %d", c, dim)
		}
	}
	_, err := mix(0.5, 64, 40)
	require.ErrorIs(t, err, quant.ErrBudget)
	_, err = Coding("nosuch").kinds(64, 40)
	require.Error(t, err)
}

// Everything runs, on small memory and with next to no samples.
func TestMeasure_Everything(t *testing.T) {
	if testing.Short() {
		t.Skip("a conversation, an archive and an index of vectors take seconds")
	}
	var last, total int64
	o := Options{Backend: open(t), Quick: true, WorkingSet: 8 << 20, effort: &effort{rounds: 1, samples: 2},
		Progress: func(_ string, done, of int64) { last, total = done, of }}
	names, err := Names(o)
	require.NoError(t, err)
	r, err := Measure(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, total, last)
	require.Len(t, names, int(total))
	skipped := map[string]bool{}
	for _, s := range r.Skipped {
		skipped[s] = true
	}
	require.Less(t, len(skipped), 8, "8K tokens of eight heads do not fit as f16; little else is skipped")
	for _, n := range names {
		x := r.Find(n)
		require.True(t, x != nil || skipped[n], n)
		if x != nil {
			require.Positive(t, x.NS.Median, n)
			require.Len(t, x.Relative, 1, n)
			require.Positive(t, x.Relative[0].Low, n)
			require.False(t, math.IsNaN(x.GBps()), n)
		}
	}
	text, err := json.Marshal(r)
	require.NoError(t, err)
	back, err := ReadRecord(strings.NewReader(string(text)))
	require.NoError(t, err)
	require.Equal(t, r.Tables(), back.Tables())
}

func TestMeasure_FilterAndCancel(t *testing.T) {
	o := Options{Backend: open(t), Quick: true, WorkingSet: 1 << 20, effort: &effort{rounds: 2, samples: 3},
		Filter: regexp.MustCompile("^encode/.*f16")}
	r, err := Measure(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, r.Results, 1)
	require.Equal(t, "encode", r.Results[0].Group())
	require.Equal(t, "f16", r.Results[0].Key("coding"))
	require.Len(t, r.Results[0].Relative, 2)
	require.Positive(t, r.Results[0].Relative[1].Median)
	require.GreaterOrEqual(t, r.Results[0].Runs, 4, "two samples at least in each of two rounds")
	require.Equal(t, 16.0, r.Results[0].BitsPerValue())

	o.Filter = regexp.MustCompile("nosuch")
	_, err = Measure(t.Context(), o)
	require.ErrorIs(t, err, quant.ErrShape)
	require.ErrorContains(t, err, "attend")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o.Filter = nil
	_, err = Measure(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
}

// The full run has every name once, and every shape of the models.
func TestCases_NamesAreUnique(t *testing.T) {
	for _, quick := range []bool{false, true} {
		seen := map[string]bool{}
		for _, c := range Cases(quick, 2, false) {
			for _, n := range c.Names {
				require.False(t, seen[n], n)
				seen[n] = true
			}
		}
		for _, m := range Models() {
			require.True(t, quick || seen[AttendName(m.Shape, K3, SpeedContext, 2)], m.Name)
		}
		require.True(t, seen[ReadName(1)] && seen[ReadName(2)])
	}
}

func TestMeter_GoesOn(t *testing.T) {
	m := &meter{effort: effort{work: time.Second, samples: 4}}
	for _, c := range []struct {
		n    int
		past time.Duration
		want bool
	}{{1, time.Hour, true}, {2, time.Hour, false}, {9, 0, true}, {9, time.Second, false}, {3, 4 * time.Second, true}, {4, 4 * time.Second, false}} {
		require.Equal(t, c.want, m.goesOn(c.n, c.past), "%+v", c)
	}
}

func TestSpread(t *testing.T) {
	s := spreadOf([]float64{5, 1, 3, 2, 4})
	require.Equal(t, Spread{3, 2, 4}, s)
	require.InDelta(t, 1.0/3, s.Half(), 1e-9)
	require.Equal(t, Spread{}, spreadOf(nil))
	require.Zero(t, Spread{}.Half())
	require.Equal(t, 1235.0, digits4(1234.56))
	require.Zero(t, digits4(math.NaN()))
}

func TestMachine_Linux(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	m := Machine{Cores: 1, OS: "linux", Arch: "amd64"}
	m.fillLinux(root)
	require.Equal(t, "unknown processor, 1 core, linux/amd64", m.String())
	require.Equal(t, int64(4*assumedCache), m.workingSet(false))
	write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU\n")
	write("proc/meminfo", "MemTotal:       8388608 kB\n")
	write("sys/devices/system/cpu/cpu0/cache/index0/size", "32K\n")
	write("sys/devices/system/cpu/cpu0/cache/index3/size", "8192K\n")
	m.fillLinux(root)
	require.Equal(t, "Some CPU, 1 core, last-level cache of 8 MiB, 8 GiB of memory, linux/amd64", m.String())
	require.Equal(t, int64(leastSet), m.workingSet(false), "four times the cache is less than the least")
	m.Cache = 1 << 40
	require.Equal(t, m.Memory/8, m.workingSet(true), "never more than an eighth of the memory")
}

func TestDerived(t *testing.T) {
	llama := Models()[2]
	require.Equal(t, "Llama-3.1-8B", llama.Name)
	x := &Result{NS: Spread{Median: 10}, Bytes: 512, Plain: 512}
	require.Equal(t, 16.0, x.BitsPerValue())
	require.Equal(t, 512.0*32*8*131072, CacheBytes(llama, x, ManyTokens), "16 GiB: what model cards say")
	require.Equal(t, int64(24), Conversations(llama, x, 24<<30), "a conversation of 8K takes 1 GiB")
	require.InDelta(t, 1e9/(10*32*8*8192), TokensPerSecond(llama, x, 8192), 1e-9)
	gemma := Models()[1]
	require.Equal(t, int64(3*8192+15*512), gemma.Pairs(8192), "layers with a window read the window")
	require.Equal(t, int64(18*100), gemma.Pairs(100))
}
