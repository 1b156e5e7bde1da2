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
	"github.com/kvist-project/kvist/cmd/kvist/internal/benchpage"
	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/quant"
)

type benchFlags struct {
	backend                           backendFlags
	filter, output, from, compare     string
	html                              string
	workingSet, rounds                int
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
medians over samples of three rounds (--quick: two; --rounds), with half the distance of the quartiles. Rows are random;
speed does not depend on their values. Processor time is that of all threads.

--filter takes a regular expression over the names that --list prints, as go test -bench does. -o keeps the
record of a run; --from shows a record again and measures nothing. --html draws a page that explains itself. --go-bench prints the format of Go's
benchmarks for benchstat.

--compare holds the run, or the record of --from, against an older record of the same machine and settings.
Beside every sample a baseline is timed, a loop of arithmetic or a read of memory, and what is compared is
processor time over that of the baseline. A change counts when it is larger than the noise that both records
show, and 4 % at least; the table says which change would have been told. More --rounds tell smaller ones.
The exit status is 1 if anything is slower.

Fields of --json and of records: format, version, command, date, machine (processor, cores, cache_bytes,
memory_bytes, os, arch), backend, others (backends not measured, and why), quick, threads, working_set_bytes,
table_bytes, noise (spread, waiting), results (name, unit, ns, cpu_ns, device_ns: median, low, high for one unit;
bytes, plain_bytes, threads, baseline, relative, runs, note), skipped.`,
		Example: `  kvist bench --quick
  kvist bench -o machine.json --html machine.html
  kvist bench --filter 'attend/head_dim=128' --threads 1
  kvist bench --compare machine.json
  kvist bench --from machine.json --go-bench`,
		Args: cobra.NoArgs,
		RunE: a.verb(func(cmd *cobra.Command, _ []string) error { return a.bench(cmd.Context(), &f) }),
	}
	fl := cmd.Flags()
	f.backend.add(cmd)
	fl.BoolVar(&f.quick, "quick", false, "fewer shapes and shorter samples: under 20 seconds, longer in plain Go")
	fl.StringVar(&f.filter, "filter", "", "`REGEXP` of the names to measure")
	fl.BoolVar(&f.list, "list", false, "print the names and exit")
	fl.IntVar(&f.workingSet, "working-set", 0, "`MiB` that attention goes through; 0: four times the last-level cache")
	fl.StringVarP(&f.output, "output", "o", "", "`FILE` to write the record to (JSON)")
	fl.IntVar(&f.rounds, "rounds", 0, "`times` that everything is set up and measured; 0: three, or two with --quick")
	fl.StringVar(&f.html, "html", "", "`FILE` to write a page with plots to")
	fl.StringVar(&f.compare, "compare", "", "`FILE` with an older record to compare with")
	fl.StringVar(&f.from, "from", "", "`FILE` with a record to show instead of measuring")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.gobench, "go-bench", false, "print in the format of Go's benchmarks")
	fl.BoolVar(&f.force, "force", false, "replace outputs that exist")
	return cmd
}

// What --working-set, in MiB, and --rounds may be.
const (
	maxWorkingSet = 1 << 20
	maxRounds     = 1000
)

func (f *benchFlags) check() (*regexp.Regexp, error) {
	if f.workingSet < 0 || f.workingSet > maxWorkingSet {
		return nil, usagef("--working-set %d: want 0 to %d", f.workingSet, maxWorkingSet)
	}
	if f.rounds < 0 || f.rounds > maxRounds {
		return nil, usagef("--rounds %d: want 0 to %d", f.rounds, maxRounds)
	}
	if f.from != "" && (f.quick || f.rounds != 0 || f.list || f.filter != "" || f.workingSet != 0 || f.output != "") {
		return nil, usagef("--from measures nothing: it goes without --quick, --rounds, --list, --filter, --working-set and -o")
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
	return []destination{{"-o", f.output, f.force}, {"--html", f.html, f.force}}
}

func (a *app) bench(ctx context.Context, f *benchFlags) (err error) {
	filter, err := f.check()
	if err != nil {
		return err
	}
	if err := a.checkOutputs([]string{f.from, f.compare}, f.destinations()...); err != nil {
		return err
	}
	var old *perf.Record
	if f.compare != "" {
		if old, err = a.readRecord(ctx, f.compare); err != nil {
			return err
		}
	}
	if f.from != "" {
		r, err := a.readRecord(ctx, f.from)
		if err != nil {
			return err
		}
		out, err := a.beginBench(ctx, f)
		if err != nil {
			return err
		}
		return errors.Join(a.showRecord(r, old, out, f), out.abort())
	}
	be, err := a.openBackend(f.backend)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, be.Close()) }()
	o := perf.Options{Backend: be, Quick: f.quick, Filter: filter, Rounds: f.rounds,
		WorkingSet: int64(f.workingSet) << 20}
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
	out, err := a.beginBench(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.abort()) }()
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
	return a.showRecord(r, old, out, f)
}

// benchOutputs are the files in the making; nil where none is asked for, or it is complete.
type benchOutputs struct{ record, page *output }

// beginBench begins the outputs: a folder that cannot be written to should not cost minutes.
func (a *app) beginBench(ctx context.Context, f *benchFlags) (o *benchOutputs, err error) {
	o = &benchOutputs{}
	if f.output != "" {
		if o.record, err = a.create(ctx, f.output, f.force); err != nil {
			return nil, err
		}
	}
	if f.html != "" {
		if o.page, err = a.create(ctx, f.html, f.force); err != nil {
			return nil, errors.Join(err, o.abort())
		}
	}
	return o, nil
}

// abort throws away what is not complete.
func (o *benchOutputs) abort() (err error) {
	for _, x := range []*output{o.record, o.page} {
		if x != nil {
			err = errors.Join(err, x.abort())
		}
	}
	return err
}

// write completes one of the outputs, if it was asked for.
func (o *benchOutputs) write(which **output, write func(w io.Writer) error) error {
	x := *which
	if x == nil {
		return nil
	}
	w := visible.NewWriter(x)
	if err := errors.Join(write(w), w.Flush()); err != nil {
		return err
	}
	*which = nil
	return x.commit()
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
	if f.rounds > 0 {
		s += fmt.Sprintf(" --rounds %d", f.rounds)
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

// showRecord writes and prints a record, and what changed since an older one. That something is slower is no reason to
// lose the record.
func (a *app) showRecord(r, old *perf.Record, out *benchOutputs, f *benchFlags) error {
	var c *perf.Comparison
	var refused error
	if old != nil {
		c, refused = perf.Compare(old, r)
	}
	if err := out.write(&out.record, func(w io.Writer) error { return printJSON(w, r) }); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	if err := out.write(&out.page, func(w io.Writer) error { return benchpage.Write(w, r, c) }); err != nil {
		return err
	}
	if s := r.Noise.Warning(); s != "" {
		a.complain("%s", s)
	}
	if err := a.printRecord(r, c, f); err != nil {
		return err
	}
	if c == nil {
		return nil
	}
	if n := len(c.Slower()); n > 0 {
		return fmt.Errorf("slower than %s: %d measurements", f.compare, n)
	}
	return nil
}

// benchJSON is what --json prints.
type benchJSON struct {
	*perf.Record
	Changes []perf.Change `json:"changes,omitempty"`
}

func (a *app) printRecord(r *perf.Record, c *perf.Comparison, f *benchFlags) error {
	w := a.summaryTo(f.output)
	if f.html == stdStream {
		w = a.stderr
	}
	switch {
	case f.json && c != nil:
		return printJSON(w, benchJSON{r, c.Changes})
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
	tables := r.Tables()
	if c != nil {
		tables = append(tables, c.Table())
	}
	for _, t := range tables {
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
	if c != nil {
		for _, s := range c.Missing {
			p.printf("\nin one of the records only: %s\n", s)
		}
	}
	return p.err
}
