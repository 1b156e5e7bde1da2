// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
)

// Case prepares work that is measured under one or more names.
type Case struct {
	Names []string
	// Setup returns the work of the names in their order; nil for what this machine has no room for.
	Setup func(ctx context.Context, e *Env) (*Ready, error)
	// Keep says that all rounds share one setup: it takes long, or the work allocates what it uses itself.
	Keep bool
}

// Ready is work that was prepared.
type Ready struct {
	Work  []*Work
	Close func() error // nil: nothing
}

// Work is what is measured under a name.
type Work struct {
	Run     func(ctx context.Context) error
	Unit    string  // what Units counts, in the singular
	Units   float64 // of a Run
	Bytes   float64 // stored bytes that a Run is about
	Plain   float64 // the same values as f16
	Memory  bool    // the work is bound by memory: its baseline is a read
	Threads int
	Note    string
	// Before prepares a Run, outside of its time. nil: nothing is to do.
	Before func(ctx context.Context) error
}

// Options say how to measure. The zero value measures everything on the backend that it is given.
type Options struct {
	Backend backend.Backend
	Threads int            // that the backend uses; 0: its workers
	Quick   bool           // fewer shapes and shorter samples: under 20 seconds
	Rounds  int            // 0: three, or two with Quick
	Filter  *regexp.Regexp // of names; nil: all
	// WorkingSet is how many bytes are attended to in turns. 0: four times the last-level cache, or one and
	// a half times with Quick, as far as a quarter of the memory allows.
	WorkingSet int64
	// Progress is told how many of all samples are taken. nil: nobody is.
	Progress func(stage string, done, total int64)

	effort *effort // of tests; nil: that of Quick
}

// Env is what cases share.
type Env struct {
	Backend    backend.Backend
	Caps       backend.Caps
	Machine    Machine
	Threads    int
	Quick      bool
	WorkingSet int64
	base       *baselines
	arena      backend.Buffer
	packed     map[string][]byte
}

// effort is how long things are measured.
type effort struct {
	rounds  int
	sample  time.Duration // the least of a sample
	work    time.Duration // of all samples of a name in a round
	samples int           // of a name in a round, unless they take long
}

var (
	fullEffort  = effort{rounds: 3, sample: 8 * time.Millisecond, work: 250 * time.Millisecond, samples: 7}
	quickEffort = effort{rounds: 2, sample: 3 * time.Millisecond, work: 40 * time.Millisecond, samples: 4}
)

// chosen returns the cases whose names match a filter.
func chosen(all []Case, filter *regexp.Regexp) ([]Case, error) {
	var out []Case
	for _, c := range all {
		if filter == nil || slices.ContainsFunc(c.Names, filter.MatchString) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("kvist/perf: no measurement matches %q; there are %s: %w", filter, strings.Join(groups(all), ", "),
			quant.ErrShape)
	}
	return out, nil
}

// groups are the first parts of names.
func groups(all []Case) (out []string) {
	for _, c := range all {
		for _, n := range c.Names {
			g, _, _ := strings.Cut(n, "/")
			if !slices.Contains(out, g) {
				out = append(out, g)
			}
		}
	}
	return out
}

// Names lists what would be measured.
//
// Errors: quant.ErrShape if nothing would be.
func Names(o Options) ([]string, error) {
	list, err := chosen(Cases(o.Quick, o.threads(), o.device()), o.Filter)
	var out []string
	for _, c := range list {
		for _, n := range c.Names {
			if o.Filter == nil || o.Filter.MatchString(n) {
				out = append(out, n)
			}
		}
	}
	return out, err
}

func (o Options) threads() int {
	if o.Threads > 0 {
		return o.Threads
	}
	return max(1, o.Backend.Caps().Workers)
}

// device reports whether the memory of the backend is not the host's.
func (o Options) device() bool { return o.Backend.Caps().Name != "cpu" }

// Measure runs the cases that the filter names.
//
// Errors: quant.ErrShape for a filter that matches nothing, the error of ctx, those of the backend.
func Measure(ctx context.Context, o Options) (_ *Record, err error) {
	names, err := Names(o)
	if err != nil {
		return nil, err
	}
	list, err := chosen(Cases(o.Quick, o.threads(), o.device()), o.Filter)
	if err != nil {
		return nil, err
	}
	e, err := newEnv(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	f := fullEffort
	if o.Quick {
		f = quickEffort
	}
	if o.effort != nil {
		f = *o.effort
	}
	if o.Rounds > 0 {
		f.rounds = o.Rounds
	}
	m := &meter{env: e, effort: f, options: o, series: map[string]*series{}, total: int64(f.rounds * len(names)),
		kept: map[int]*Ready{}}
	defer func() { err = errors.Join(err, m.close()) }()
	for m.round = range f.rounds {
		for i, c := range list {
			if err := m.runCase(ctx, i, c); err != nil {
				return nil, err
			}
		}
		if err := e.close(); err != nil { // the next round gets other memory
			return nil, err
		}
	}
	r := newRecord(e, o)
	for _, n := range names {
		if s := m.series[n]; s != nil {
			r.Results = append(r.Results, s.result(n))
		} else {
			r.Skipped = append(r.Skipped, n)
		}
	}
	r.Noise = e.base.noise()
	return r, nil
}

func newEnv(o Options) (*Env, error) {
	e := &Env{Backend: o.Backend, Caps: o.Backend.Caps(), Machine: DescribeMachine(), Threads: o.threads(), Quick: o.Quick,
		WorkingSet: o.WorkingSet, packed: map[string][]byte{}}
	if e.WorkingSet == 0 {
		e.WorkingSet = e.Machine.workingSet(o.Quick)
	}
	var err error
	e.base, err = newBaselines(e.WorkingSet)
	return e, err
}

func (e *Env) close() error {
	if e.arena == nil {
		return nil
	}
	a := e.arena
	e.arena = nil
	return a.Free()
}

// meter takes samples.
type meter struct {
	env     *Env
	effort  effort
	options Options
	series  map[string]*series
	kept    map[int]*Ready // of cases that all rounds share
	round   int
	done    int64
	total   int64
}

// close closes what was kept.
func (m *meter) close() (err error) {
	for _, r := range m.kept {
		err = errors.Join(err, r.close())
	}
	return err
}

func (r *Ready) close() error {
	if r.Close == nil {
		return nil
	}
	return r.Close()
}

// setup prepares a case, or finds what an earlier round prepared.
func (m *meter) setup(ctx context.Context, i int, c Case) (_ *Ready, done func() error, err error) {
	if r := m.kept[i]; r != nil {
		return r, func() error { return nil }, nil
	}
	r, err := c.Setup(ctx, m.env)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", c.Names[0], err)
	}
	if c.Keep {
		m.kept[i] = r
		return r, func() error { return nil }, nil
	}
	return r, r.close, nil
}

// series are the samples of a name.
type series struct {
	work     Work
	wall     []float64 // ns a unit
	cpu      []float64
	device   []float64
	relative []Spread // of each round
	runs     int
}

func (m *meter) runCase(ctx context.Context, i int, c Case) (err error) {
	ready, done, err := m.setup(ctx, i, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	runtime.GC() // what the setup left behind is not the work's
	for i, name := range c.Names {
		if m.options.Filter != nil && !m.options.Filter.MatchString(name) {
			continue
		}
		if i < len(ready.Work) && ready.Work[i] != nil {
			if err := m.take(ctx, name, ready.Work[i]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		m.done++
		if m.options.Progress != nil {
			m.options.Progress("measure", m.done, m.total)
		}
	}
	return nil
}

// take adds the samples of a round to a series.
func (m *meter) take(ctx context.Context, name string, w *Work) error {
	s := m.series[name]
	if s == nil {
		s = &series{}
		m.series[name] = s
	}
	s.work = *w
	runs, err := m.warmUp(ctx, w)
	if err != nil {
		return err
	}
	kind := baseLoop
	if w.Memory {
		kind = baseRead
	}
	var relative []float64
	before := m.env.base.take(kind, w.Threads)
	begin := time.Now()
	for n := 0; m.goesOn(n, time.Since(begin)); n++ {
		t, device, err := m.sample(ctx, w, runs)
		if err != nil {
			return err
		}
		after := m.env.base.take(kind, w.Threads)
		units := w.Units * float64(runs)
		s.wall = append(s.wall, float64(t.wall)/units)
		s.cpu = append(s.cpu, float64(t.cpu)/units)
		if device > 0 { // what the host does beside it is not what is compared
			s.device = append(s.device, float64(device)/units)
			relative, before = append(relative, float64(device)/units), after
			s.runs += runs
			continue
		}
		relative = append(relative, float64(t.busy())/units/(float64(before.busy()+after.busy())/2)*1e6)
		s.runs += runs
		before = after
	}
	s.relative = append(s.relative, spreadOf(relative))
	return nil
}

// goesOn reports whether a round takes another sample: until its time is up and it has enough of them. Work that is
// slow gets five times as long for that, and two samples at least.
func (m *meter) goesOn(n int, past time.Duration) bool {
	return n < 2 || past < m.effort.work || n < m.effort.samples && past < 5*m.effort.work
}

// warmUp runs the work until a sample's worth of time has gone by, and returns how many runs make a sample.
func (m *meter) warmUp(ctx context.Context, w *Work) (int, error) {
	for runs := 1; ; runs *= 2 {
		t, _, err := m.sample(ctx, w, runs)
		if err != nil {
			return 0, err
		}
		if t.wall >= m.effort.sample || runs >= 1<<20 || w.Before != nil {
			return runs, nil
		}
		if t.wall > m.effort.sample/16 {
			return max(1, int(float64(runs)*float64(m.effort.sample)/float64(t.wall))), nil
		}
	}
}

// deviceTimer is a backend whose device measures the time of its kernels.
type deviceTimer interface {
	DeviceTime(f func() error) (time.Duration, error)
}

// sample times some runs.
func (m *meter) sample(ctx context.Context, w *Work, runs int) (took, time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return took{}, 0, err
	}
	if w.Before != nil {
		if err := w.Before(ctx); err != nil {
			return took{}, 0, err
		}
	}
	all := func() error {
		for range runs {
			if err := w.Run(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	var device time.Duration
	var err error
	begin := now()
	if d, ok := m.env.Backend.(deviceTimer); ok {
		device, err = d.DeviceTime(all)
	} else {
		err = all()
	}
	return begin.since(), device, err
}

func (s *series) result(name string) Result {
	r := Result{Name: name, Unit: s.work.Unit, NS: spreadOf(s.wall), CPUNS: spreadOf(s.cpu), Relative: s.relative,
		Bytes: digits4(s.work.Bytes / s.work.Units), Plain: digits4(s.work.Plain / s.work.Units), Threads: s.work.Threads,
		Baseline: baseLoop, Runs: s.runs, Note: s.work.Note}
	if s.work.Memory {
		r.Baseline = baseRead
	}
	if len(s.device) > 0 {
		d := spreadOf(s.device)
		r.DeviceNS, r.Baseline = &d, baseNone
	}
	return r
}

// gaussian returns values that are the same for the same seed.
func gaussian(n int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 17))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}
