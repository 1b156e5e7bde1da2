// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/bench/perf"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/quant"
)

type benchFlags struct {
	backend                           backendFlags
	filter, output, from              string
	workingSet                        int
	quick, list, json, gobench, force bool
}

func newBench(a *app) *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench [--from RECORD]",
		Short: "Measure what kvist costs and gains on this machine",
		Long: `bench measures the speed of kvist on this machine: attention over f16, ggml's codings and kvist at
4.25, 3, 2.25 and 1.5 bits a value for the shapes of well-known models, beside the bandwidth of memory; then
coding, relevance, planning, archives, the serving cache and the index of embeddings. It needs no model.

Attention reads memory, not the processor's caches: it goes through --working-set bytes in turns. Figures are
medians over samples of three rounds (--quick: one), with half the distance of the quartiles. Rows are random;
speed does not depend on their values. Processor time is that of all threads.

--filter takes a regular expression over the names that --list prints, as go test -bench does. -o keeps the
record of a run; --from shows a record again and measures nothing. --go-bench prints the format of Go's
benchmarks for benchstat.

Fields of --json and of records: format, version, command, date, machine (processor, cores, cache_bytes,
memory_bytes, os, arch), backend, others (backends not measured, and why), quick, threads, working_set_bytes,
table_bytes, noise (spread, waiting), results (name, unit, ns, cpu_ns, device_ns: median, low, high for one unit;
bytes, plain_bytes, threads, baseline, relative, runs, note), skipped.`,
		Example: `  kvist bench --quick
  kvist bench -o machine.json
  kvist bench --filter 'attend/head_dim=128' --threads 1
  kvist bench --from machine.json --go-bench`,
		Args: cobra.NoArgs,
		RunE: a.verb(func(cmd *cobra.Command, _ []string) error { return a.bench(cmd.Context(), &f) }),
	}
	fl := cmd.Flags()
	f.backend.add(cmd)
	fl.BoolVar(&f.quick, "quick", false, "fewer shapes and shorter samples: under 20 seconds")
	fl.StringVar(&f.filter, "filter", "", "`REGEXP` of the names to measure")
	fl.BoolVar(&f.list, "list", false, "print the names and exit")
	fl.IntVar(&f.workingSet, "working-set", 0, "`MiB` that attention goes through; 0: four times the last-level cache")
	fl.StringVarP(&f.output, "output", "o", "", "`FILE` to write the record to (JSON)")
	fl.StringVar(&f.from, "from", "", "`FILE` with a record to show instead of measuring")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.gobench, "go-bench", false, "print in the format of Go's benchmarks")
	fl.BoolVar(&f.force, "force", false, "replace outputs that exist")
	return cmd
}

// maxWorkingSet bounds --working-set.
const maxWorkingSet = 1 << 20 // MiB

func (f *benchFlags) check() (*regexp.Regexp, error) {
	if f.workingSet < 0 || f.workingSet > maxWorkingSet {
		return nil, usagef("--working-set %d: want 0 to %d", f.workingSet, maxWorkingSet)
	}
	if f.from != "" && (f.quick || f.list || f.filter != "" || f.workingSet != 0 || f.output != "") {
		return nil, usagef("--from measures nothing: it goes without --quick, --list, --filter, --working-set and -o")
	}
	if f.json && f.gobench {
		return nil, usagef("--json and --go-bench: want one of them")
	}
	if err := f.backend.check(); err != nil {
		return nil, err
	}
	if f.filter == "" {
		return nil, nil
	}
	r, err := regexp.Compile(f.filter)
	if err != nil {
		return nil, usagef("--filter %q: %v", f.filter, err)
	}
	return r, nil
}

// destinations are the files that are written.
func (f *benchFlags) destinations() []destination {
	return []destination{{"-o", f.output, f.force}}
}

func (a *app) bench(ctx context.Context, f *benchFlags) (err error) {
	filter, err := f.check()
	if err != nil {
		return err
	}
	if err := a.checkOutputs([]string{f.from}, f.destinations()...); err != nil {
		return err
	}
	if f.from != "" {
		r, err := a.readRecord(ctx, f.from)
		if err != nil {
			return err
		}
		return a.showRecord(ctx, r, f)
	}
	be, err := a.openBackend(f.backend)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, be.Close()) }()
	o := perf.Options{Backend: be, Quick: f.quick, Filter: filter, WorkingSet: int64(f.workingSet) << 20}
	if f.list {
		names, err := perf.Names(o)
		p := &printer{w: a.stdout}
		for _, n := range names {
			p.printf("%s\n", n)
		}
		return errors.Join(benchUsage(err), p.err)
	}
	if _, err := perf.Names(o); err != nil {
		return benchUsage(err)
	}
	// The output is begun first: a folder that cannot be written to should not cost minutes.
	var out *output
	if f.output != "" {
		if out, err = a.create(ctx, f.output, f.force); err != nil {
			return err
		}
		defer out.finish(&err)
	}
	say, clear := a.progress()
	defer clear()
	o.Progress = say
	r, err := perf.Measure(ctx, o)
	if err != nil {
		return err
	}
	clear()
	r.Version, r.Command, r.Date = versionText(), f.command(), time.Now().UTC().Format(time.DateOnly)
	r.Others = otherBackends(be.Caps().Name)
	if out != nil {
		if err := printJSON(out, r); err != nil {
			return err
		}
	}
	return a.showRecord(ctx, r, f)
}

// benchUsage makes a filter that matches nothing wrong usage.
func benchUsage(err error) error {
	if errors.Is(err, quant.ErrShape) {
		return &usageError{err: err}
	}
	return err
}

// command is the line that measures this again.
func (f *benchFlags) command() string {
	s := "kvist bench"
	if f.quick {
		s += " --quick"
	}
	if f.filter != "" {
		s += fmt.Sprintf(" --filter %q", f.filter)
	}
	if f.backend.name != auto.Names()[0] {
		s += " --backend " + f.backend.name
	}
	if f.backend.threads > 0 {
		s += fmt.Sprintf(" --threads %d", f.backend.threads)
	}
	if f.workingSet > 0 {
		s += fmt.Sprintf(" --working-set %d", f.workingSet)
	}
	return s
}

// otherBackends says of every backend that was not measured why.
func otherBackends(measured string) []string {
	out := []string{}
	for _, c := range auto.Probe() {
		if c.Name == measured {
			continue
		}
		if c.Usable {
			out = append(out, fmt.Sprintf("%s: not asked for (--backend %s)", c.Name, c.Name))
			continue
		}
		reason, _, _ := strings.Cut(c.Reason, " (")
		out = append(out, c.Name+": "+reason)
	}
	return out
}

// readRecord reads what -o or --json wrote.
func (a *app) readRecord(ctx context.Context, name string) (r *perf.Record, err error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return nil, err
	}
	defer closing(in, &err)
	if r, err = perf.ReadRecord(io.NewSectionReader(in, 0, in.size)); err != nil {
		return nil, fmt.Errorf("%s: %w", in.name, err)
	}
	return r, nil
}

// showRecord prints a record.
func (a *app) showRecord(_ context.Context, r *perf.Record, f *benchFlags) error {
	w := a.summaryTo(f.output)
	if s := r.Noise.Warning(); s != "" {
		a.complain("%s", s)
	}
	switch {
	case f.json:
		return printJSON(w, r)
	case f.gobench:
		return r.WriteGo(w)
	}
	p := &printer{w: w}
	p.printf("%s\n", r.Machine)
	p.printf("backend %s, %s, threads: %d", r.Backend.Name, r.Backend.ISA, r.Threads)
	p.printf("; attention goes through %s MiB", count(r.WorkingSet>>20))
	p.printf("; a fixed loop varied by %s\n", percent(r.Noise.Spread))
	for _, s := range r.Others {
		p.printf("not measured: %s\n", s)
	}
	for _, t := range r.Tables() {
		p.printf("\n%s\n", t.Title)
		if t.Note != "" {
			p.printf("%s\n", t.Note)
		}
		p.printf("\n")
		p.cells(t.Headers, t.Rows)
	}
	for _, s := range r.Skipped {
		p.printf("\nno room for %s\n", s)
	}
	return p.err
}
