// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

// sample is a record of two codings of a shape.
func sample() *Record {
	s := Shape{128, 4, 8}
	r := &Record{Format: recordFormat, Machine: Machine{Processor: "Some CPU", Cores: 2, Memory: 24 << 30, OS: "linux", Arch: "amd64"},
		Backend: BackendInfo{Name: "cpu", ISA: "avx2", Memory: 24 << 30}, Threads: 2}
	add := func(name, unit string, ns, cpu, bytes, plain float64) {
		r.Results = append(r.Results, Result{Name: name, Unit: unit, NS: Spread{ns, 0.9 * ns, 1.1 * ns}, CPUNS: Spread{cpu, cpu, cpu},
			Bytes: bytes, Plain: plain, Threads: 2, Baseline: baseRead, Relative: []Spread{{2, 1, 3}}, Runs: 12})
	}
	add(ReadName(2), "byte", 0.05, 0.1, 1, 0)
	add(AttendName(s, F16, 8192, 2), "row pair", 50, 100, 512, 512)
	add(AttendName(s, K3, 8192, 2), "row pair", 10, 20, 96, 512)
	add("encode/head_dim=128/coding=lm3/threads=2", "value", 2, 4, 0.5, 2)
	add("demote/head_dim=128/coding=lm3/threads=2", "value", 0.5, 1, 0.5, 2)
	add("plan/bits=3", "value", 2500, 4000, 0, 0)
	return r
}

func TestTables(t *testing.T) {
	var text strings.Builder
	for _, x := range sample().Tables() {
		for _, row := range x.Rows {
			require.Len(t, row, len(x.Headers), x.Title)
			text.WriteString(strings.Join(row, " | ") + "\n")
		}
	}
	for _, want := range []string{
		"read, 2 threads | 20.0 | 10.0 %",
		"f16 | 16.0 | 50.0 | 10.0 % | 100 | 10.2 | 51 % | 100 %",
		"kvist-3 | 3.00 | 10.0 | 10.0 % | 20.0 | 9.60 | 48 % | 20 %",
		"Llama-3.1-8B | kvist-3 | 47.7 | 3.22 | 128",
		"Qwen3-8B | f16 | 8.48 | 19.3 | 21",
		"128 | lm3 | 0.50 | - | 2.00",
		"plan/bits=3 | value | 2.50 us | 10.0 % | 4.00 us",
	} {
		require.Contains(t, text.String(), want+"\n")
	}
	require.Empty(t, (&Record{}).Tables())
}

var goLine = regexp.MustCompile(`^Benchmark[A-Z]\S+-\d+\t\d+(\t\S+ \S+)+$`)

func TestWriteGo(t *testing.T) {
	var w bytes.Buffer
	require.NoError(t, sample().WriteGo(&w))
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	require.Equal(t, "cpu: Some CPU", lines[3])
	require.Len(t, lines, 4+6)
	for _, l := range lines[4:] {
		require.Regexp(t, goLine, l)
	}
	require.Contains(t, w.String(), "BenchmarkAttend/head_dim=128/gqa=4/kv_heads=8/coding=kvist-3/context=8192/threads=2/backend=cpu-avx2-2\t12\t"+
		"10 ns/op\t20 cpu-ns/op\t9.6 stored-GB/s\t3 bits/value\n")
}

func TestReadRecord_Refuses(t *testing.T) {
	write := func(change func(r *Record)) string {
		r := sample()
		change(r)
		b, err := json.Marshal(r)
		require.NoError(t, err)
		return string(b)
	}
	_, err := ReadRecord(strings.NewReader(write(func(*Record) {})))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"no JSON":    {"x", quant.ErrCorrupt},
		"another":    {`{"format": "kvist-eval/1"}`, quant.ErrCorrupt},
		"later":      {`{"format": "kvist-bench/9"}`, quant.ErrVersion},
		"no name":    {write(func(r *Record) { r.Results[0].Name = "" }), quant.ErrCorrupt},
		"name twice": {write(func(r *Record) { r.Results[0].Name = r.Results[1].Name }), quant.ErrCorrupt},
		"no time":    {write(func(r *Record) { r.Results[0].NS = Spread{} }), quant.ErrCorrupt},
		"relative":   {write(func(r *Record) { r.Results[0].Relative[0].Low = -1 }), quant.ErrCorrupt},
		"too long":   {`{"format": "kvist-bench/1", "command": "` + strings.Repeat("x", maxRecord) + `"}`, quant.ErrTooLarge},
		"too many":   {write(func(r *Record) { r.Results = make([]Result, maxResults+1) }), quant.ErrTooLarge},
	} {
		_, err := ReadRecord(strings.NewReader(c.text))
		require.ErrorIs(t, err, c.want, name)
	}
}

// FuzzReadRecord: what is read can be shown and compared.
func FuzzReadRecord(f *testing.F) {
	text, err := json.Marshal(sample())
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"format": "kvist-bench/1", "results": [{"name": "a", "ns": {"median": 1e300, "low": 1e-300, "high": 1e308}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ReadRecord(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, table := range r.Tables() {
			for _, row := range table.Rows {
				require.Len(t, row, len(table.Headers))
			}
		}
		require.NoError(t, r.WriteGo(io.Discard))
		c, err := Compare(r, r)
		if err != nil {
			return
		}
		require.Empty(t, c.Slower(), "a record is not slower than itself")
	})
}
