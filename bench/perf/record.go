// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// recordFormat is what the field format of a record says.
const recordFormat = "kvist-bench/1"

// Record is what a run measured.
type Record struct {
	Format     string      `json:"format"`
	Version    string      `json:"version"` // of kvist
	Command    string      `json:"command"`
	Date       string      `json:"date"` // UTC, to the day
	Machine    Machine     `json:"machine"`
	Backend    BackendInfo `json:"backend"`
	Others     []string    `json:"others"` // backends that were not measured, and why
	Quick      bool        `json:"quick"`
	Threads    int         `json:"threads"`
	WorkingSet int64       `json:"working_set_bytes"`
	TableBytes int         `json:"table_bytes"` // that the backend keeps of a block
	Noise      Noise       `json:"noise"`
	Results    []Result    `json:"results"`
	Skipped    []string    `json:"skipped,omitempty"` // names that this machine has no room for
}

// BackendInfo describes the backend that was measured.
type BackendInfo struct {
	Name   string `json:"name"`
	Device string `json:"device"`
	ISA    string `json:"isa"`
	Memory int64  `json:"memory_bytes"` // that it may take; 0 if unknown
	Reason string `json:"reason"`
}

// Result is what was measured under a name. Times are for a unit.
type Result struct {
	Name     string   `json:"name"`
	Unit     string   `json:"unit"`
	NS       Spread   `json:"ns"`     // wall time
	CPUNS    Spread   `json:"cpu_ns"` // processor time of the process; 0 where the system does not tell
	DeviceNS *Spread  `json:"device_ns,omitempty"`
	Bytes    float64  `json:"bytes"`       // stored
	Plain    float64  `json:"plain_bytes"` // of the same values as f16
	Threads  int      `json:"threads"`
	Baseline string   `json:"baseline"`
	Relative []Spread `json:"relative"` // of the samples of each round, in millionths of the baseline
	Runs     int      `json:"runs"`
	Note     string   `json:"note,omitempty"`
}

// Group is the first part of the name.
func (r *Result) Group() string {
	g, _, _ := strings.Cut(r.Name, "/")
	return g
}

// Key returns the value of a key of the name, "" if it has none.
func (r *Result) Key(key string) string {
	for part := range strings.SplitSeq(r.Name, "/") {
		if k, v, ok := strings.Cut(part, "="); ok && k == key {
			return v
		}
	}
	return ""
}

// GBps is stored bytes for each nanosecond of wall time.
func (r *Result) GBps() float64 {
	if r.NS.Median == 0 {
		return 0
	}
	return r.Bytes / r.NS.Median
}

// Find returns the result of a name, nil if it was not measured.
func (r *Record) Find(name string) *Result {
	for i := range r.Results {
		if r.Results[i].Name == name {
			return &r.Results[i]
		}
	}
	return nil
}

func newRecord(e *Env, o Options) *Record {
	c := e.Caps
	c.Reason, _, _ = strings.Cut(c.Reason, " (") // where libraries were looked for is for kvist doctor to tell
	return &Record{Format: recordFormat, Machine: e.Machine, Backend: BackendInfo{c.Name, c.Device, c.ISA, c.Memory, c.Reason},
		Quick: o.Quick, Threads: e.Threads, WorkingSet: e.WorkingSet, TableBytes: c.TableBytes}
}

// What a record may hold.
const (
	maxRecord  = 16 << 20 // bytes
	maxResults = 1 << 12
)

// ReadRecord reads a record.
//
// Errors: quant.ErrCorrupt for what is no record, quant.ErrVersion for a later one, quant.ErrTooLarge, those of r.
func ReadRecord(r io.Reader) (*Record, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxRecord {
		return nil, fmt.Errorf("kvist/perf: record of more than %d bytes: %w", maxRecord, quant.ErrTooLarge)
	}
	var out Record
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("kvist/perf: no record of kvist bench: %w: %w", err, quant.ErrCorrupt)
	}
	if out.Format != recordFormat {
		category := quant.ErrCorrupt
		if strings.HasPrefix(out.Format, "kvist-bench/") {
			category = quant.ErrVersion
		}
		return nil, fmt.Errorf("kvist/perf: record of format %q, want %q: %w", out.Format, recordFormat, category)
	}
	return &out, out.check()
}

// check holds what tables and comparisons rely on.
func (r *Record) check() error {
	if len(r.Results) > maxResults {
		return fmt.Errorf("kvist/perf: record with %d results: %w", len(r.Results), quant.ErrTooLarge)
	}
	seen := map[string]bool{}
	for i := range r.Results {
		x := &r.Results[i]
		ok := x.Name != "" && !seen[x.Name] && x.NS.Median > 0 && x.NS.Low > 0 && x.NS.High >= x.NS.Low && x.Bytes >= 0 &&
			x.Plain >= 0 && x.CPUNS.Median >= 0
		for _, v := range x.Relative {
			ok = ok && v.Low > 0 && v.Low <= v.Median && v.Median <= v.High && !math.IsInf(v.High, 0)
		}
		if !ok {
			return fmt.Errorf("kvist/perf: record: result %d (%q) has no name of its own, or times that cannot be: %w", i,
				x.Name, quant.ErrCorrupt)
		}
		seen[x.Name] = true
	}
	return nil
}
