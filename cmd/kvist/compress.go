// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
)

// defaultBits is the target when none is given: about a quarter of f16, where the measured
// error of attention is a small part of a percent.
const defaultBits = 4.3

// warnError is the predicted error of attention from which compress warns: single tokens then get most of their
// outputs wrong.
const warnError = 0.05

// formAuto leaves the form to the other flags.
const formAuto = "auto"

// hotFlags are about blocks that are attended to in place, and nothing else.
var hotFlags = []string{"coding", "max-error", "levels", "unseen", "window", "row-bias"}

type compressFlags struct {
	out, budget, coding, form, profile, weights, importance, levels, rowBias string
	bits, maxError, unseen                                                   float64
	sinks, window, segment                                                   int
	seed                                                                     uint64
	nonfinite, mean, metric, lossless, json, force                           bool
	streams                                                                  int
	backend                                                                  backendFlags
	state                                                                    stateFlags
}

func newCompress(a *app) *cobra.Command {
	var f compressFlags
	def := kvfile.DefaultConfig()
	cmd := &cobra.Command{
		Use:   "compress IN -o OUT.kvist",
		Short: "Compress a capture to a .kvist file",
		Long: `compress reads a capture, decides what each block of tokens is worth, and writes a
.kvist file.

IN is a KV capture (safetensors, kv-capture/1 or /2) or a file of rows: any safetensors, .npy or .npz file,
or the tensors of a GGUF; the last dimension is a row. Rows of F16, BF16 and F32 keep their type. F64
becomes F32, which loses precision and refuses values beyond its range. FP8 (E4M3, E5M2) and I8 become
F16, and the groups of a GGUF become F32, exactly. Tensors of I8 or of one dimension are rows only in a
file without other rows; otherwise they are stored exactly.

The default form is archive: entropy-coded, the fewest bytes for the same damage, decompressed
before use. --form hot writes blocks that attention reads in place. The flags --coding, --levels,
--unseen, --window, --row-bias and --max-error select the hot form, because they apply to blocks.

Give at most one target: --bits, --budget or --max-error. The default is --bits 4.3, unless --coding
leaves no choice. Bits and bytes count the whole file: header, tables, side tensors, padding and
index. A percentage in --budget is of the f16 bytes of K and V (for activations: of all rows). In
layers with a sliding window, tokens that no later query can see are dropped, and their bytes serve
the others; --lossless keeps them. Bits count all values; the output gives those for each value that
a later query can see as well.

--profile names a file that kvist calibrate or kvist tune made for the model. An archive coded with
the bases of a profile needs the profile for decompression. Without a profile, compress fits the
bases to the capture and stores them in the file. --lossless keeps every bit of every row as read; it
refuses F64, unless every value is a float32. A file made with --streams 4 can be made coarser by
kvist truncate.

IN may also be a state of llama.cpp: what llama-server saves of a slot, or a program with
llama_state_seq_save_file, llama_state_save_file or llama_state_seq_get_data. decompress writes the state
again. --model names the GGUF file of its model, which says what a state does not; the model is also run
over the tokens of the state for its queries, unless the profile knows queries or --run-model=false says
so. Without --model, a --profile and --rope-pairs say it. --lossless needs neither. Caches of f16, bf16, f32, q8_0 and q4_0.

IN may also be a .kvist file. An archive can become hot blocks, with the weights of the archive, and
either form can become a smaller file.

--coding limits the codings of the planner: lm4 for everything; a menu per side, k=lm4|lm3,v=lm2|lm3;
or rows=lm4 for activations. A menu of one coding fixes it. Options follow a coding: lm4+len+s8.

--levels lets the planner merge runs of adjacent tokens of low weight into one row each (chunks),
merge tokens of low weight in a whole segment into a few rows (summary), or drop them (dropped), if
that costs less than coding them. auto allows all of these below 2.875 bits per value. --unseen is
the share of future queries that past queries do not predict; a larger share makes the planner more
careful with tokens that past attention did not read.

From a predicted error of attention of 5 % on, compress warns on standard error.

Settings in a profile apply unless a flag overrides them. The output names the profile by its hash.

--weights gives the worth of each token: .npy of [tokens], [kv_heads, tokens] or
[layers, kv_heads, tokens], or safetensors with layers.N.weights of [kv_heads, tokens]; F16, F32 or F64.

Fields of --json: input, output, target, default_target, target_bytes (0 if the target is not in bytes),
lossless (every bit is kept), bytes, values, bits_per_value, seen_values and bits_per_seen_value (of
tokens that a later query can see: those within the windows of their layers),
original_bytes (as f16), source_bytes (as in the input), ratio (original_bytes over bytes),
predicted_error, measured_error (null unless --max-error), sections (header,
payload, tables, side, index: bytes), codings (coding, values, share), backend (name, device, isa,
workers, memory, reason), importance (profile, heads, collapsed, skipped: heads with some
queries left out because they are NaN or Inf, unweighed: heads without queries, expected: heads weighed by the
queries that the profile knows, because the input holds none, reason: why no head was
weighed), prices (how errors of heads were priced: heads, queries, profile, stand_in: heads that use K
in place of queries, reason), profile (its hash in the file, or ""), config (that of the file).`,
		Example: `  kvist compress cache.safetensors -o cache.kvist
  kvist compress cache.safetensors -o cache.kvist --bits 2.5 --weights worth.npy
  kvist compress cache.safetensors -o cache.kvist --budget 12%
  kvist compress cache.safetensors -o cache.kvist --max-error 0.002
  kvist compress cache.safetensors -o cache.kvist --bits 2.75 --profile model.kvprofile
  kvist compress cache.safetensors -o cache.kvist --form archive --bits 1.8 --profile m.kvprofile
  kvist compress embeddings.npy -o embeddings.kvist --coding rows=lm4
  producer | kvist compress - -o - --bits 3 > cache.kvist`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			prof, err := a.openProfile(cmd.Context(), f.profile)
			if err != nil {
				return err
			}
			f.state.runSet = cmd.Flags().Changed("run-model")
			cfg, err := f.config(cmd, prof)
			if err != nil {
				return err
			}
			return a.compress(cmd.Context(), args[0], &f, cfg)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.Float64Var(&f.bits, "bits", 0, "target in `bits` per value, all bytes counted (default 4.3)")
	fl.StringVar(&f.budget, "budget", "",
		"target in `BYTES` (1500000, 1.5M, 2GiB) or percent of f16 (10%)")
	fl.Float64Var(&f.maxError, "max-error", 0,
		"fewest bytes with a mean future-attention `error` of at most this")
	fl.StringVar(&f.coding, "coding", "", "`codings` the planner may choose from")
	fl.StringVar(&f.form, "form", formAuto,
		"`form` of the file: archive, hot, or auto (archive, unless a flag applies to hot only)")
	fl.StringVar(&f.profile, "profile", "", "profile `FILE` of kvist tune or kvist calibrate for the model")
	fl.BoolVar(&f.lossless, "lossless", false, "archive: keep every bit of every row")
	fl.IntVar(&f.streams, "streams", def.Chunks,
		"archive: `stages` of rows, up to 16, each with half the steps, that kvist truncate can drop")
	fl.IntVar(&f.sinks, "sinks", def.Sinks, "first `tokens`, kept at 8 bits or exactly")
	fl.IntVar(&f.window, "window", def.Window, "last `tokens`, kept exactly (hot)")
	fl.IntVar(&f.segment, "segment", def.Segment, "`tokens` of a segment, 32 to 32768")
	fl.Uint64Var(&f.seed, "seed", def.Seed, "`seed` of the rotation")
	fl.StringVar(&f.weights, "weights", "", "`FILE` with a weight for each token")
	fl.StringVar(&f.importance, "importance", def.Importance,
		"`profile` that weighs tokens by the attention they get: default, none, or its fields")
	fl.StringVar(&f.levels, "levels", "auto",
		"`levels` of detail that the planner may choose from")
	fl.Float64Var(&f.unseen, "unseen", def.Unseen,
		"`share` of future queries that differ from those seen, 0 to 1")
	fl.StringVar(&f.rowBias, "row-bias", def.RowBias,
		"correct the scores of coarse rows for their noise: true, false, or auto (if it pays)")
	fl.BoolVar(&f.mean, "mean", def.Mean, "code rows of K without the mean of their segment where that pays (hot)")
	fl.BoolVar(&f.metric, "metric", def.Metric, "code K in a metric fitted to its queries where that pays (hot)")
	fl.BoolVar(&f.nonfinite, "allow-nonfinite", false,
		"keep rows with NaN or Inf exactly instead of failing; in an archive, all rows of their segment and layer")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists")
	f.state.add(cmd)
	f.backend.add(cmd)
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

// config turns the flags into a Config. All its errors are of usage, but for what is not built.
func (f *compressFlags) config(cmd *cobra.Command, prof *profile.Profile) (kvfile.Config, error) {
	cfg := kvfile.DefaultConfig()
	if err := cfg.Apply(prof); err != nil {
		return cfg, err
	}
	switch f.form {
	case kvfile.FormHot, kvfile.FormArchive:
		cfg.Form = f.form
	case formAuto:
		cfg.Form = kvfile.FormArchive
	default:
		return cfg, oneOf("form", f.form, formWords)
	}
	for _, name := range hotFlags {
		switch {
		case !cmd.Flags().Changed(name):
		case f.form == kvfile.FormArchive:
			return cfg, usagef("--%s is about hot blocks: leave out --form archive", name)
		default:
			cfg.Form = kvfile.FormHot
		}
	}
	if err := f.backend.check(); err != nil {
		return cfg, err
	}
	targets := 0
	for _, name := range []string{"bits", "budget", "max-error"} {
		if cmd.Flags().Changed(name) {
			targets++
		}
	}
	if targets > 1 {
		return cfg, usagef("--bits, --budget and --max-error contradict each other: give one")
	}
	if err := f.ranges(cmd); err != nil {
		return cfg, err
	}
	cfg.Bits, cfg.MaxError = f.bits, f.maxError
	if cmd.Flags().Changed("budget") {
		var err error
		if cfg.Bytes, cfg.Share, err = parseBudget(f.budget); err != nil {
			return cfg, &usageError{err: err}
		}
	}
	if err := f.menus(&cfg); err != nil {
		return cfg, err
	}
	cfg.Window, cfg.Seed, cfg.AllowNonfinite = f.window, f.seed, f.nonfinite
	cfg.Mean, cfg.Metric = f.mean, f.metric
	levels, err := setting("levels", f.levels)
	if err != nil {
		return cfg, &usageError{err: err}
	}
	rowBias, err := setting("row-bias", f.rowBias)
	if err != nil {
		return cfg, oneOf("row-bias", f.rowBias, rowBiasWords)
	}
	// A profile's settings stand in the place of defaults, not of what was asked for.
	for name, set := range map[string]func(){
		"sinks":      func() { cfg.Sinks = f.sinks },
		"segment":    func() { cfg.Segment = f.segment },
		"row-bias":   func() { cfg.RowBias = rowBias.RowBias },
		"importance": func() { cfg.Importance = f.importance },
		"levels":     func() { cfg.Levels = levels.Levels },
		"unseen":     func() { cfg.Unseen = f.unseen },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	cfg.Chunks, cfg.Lossless = f.streams, f.lossless
	if f.lossless {
		if f.form == kvfile.FormHot {
			return cfg, usagef("--lossless is for archives: leave out --form hot")
		}
		cfg.Form = kvfile.FormArchive
	}
	if f.streams > 1 && cfg.Form != kvfile.FormArchive {
		return cfg, usagef("--streams is for archives: leave out --form hot and what asks for it")
	}
	if targets == 0 && !f.lossless &&
		(cfg.Form == kvfile.FormArchive || !(len(cfg.K) == 1 && len(cfg.V) == 1)) {
		cfg.Bits, cfg.Soft = defaultBits, true
	}
	if err := cfg.Validate(); err != nil {
		return cfg, &usageError{err: err}
	}
	return cfg, nil
}

func (f *compressFlags) menus(cfg *kvfile.Config) error {
	if f.coding == "" {
		return nil
	}
	m, err := parseCodings(f.coding)
	if err != nil {
		return &usageError{err: err}
	}
	if m.rows != nil {
		cfg.Rows = m.rows
		if m.k == nil && m.v == nil {
			m.k, m.v = m.rows, m.rows // a file of rows has no K and V: let them not leave a choice
		}
	}
	if m.k != nil {
		cfg.K = m.k
	}
	if m.v != nil {
		cfg.V = m.v
	}
	return nil
}

// checkSides refuses a --coding that says nothing about what the input holds.
func (f *compressFlags) checkSides(kv bool) error {
	m, err := parseCodings(f.coding)
	switch {
	case f.coding == "" || err != nil:
		return nil
	case !kv && m.rows == nil:
		return usagef("--coding %s: the input holds rows, not K and V: want rows=...", f.coding)
	case kv && m.k == nil && (m.v == nil || m.rows != nil):
		return usagef("--coding %s: the input holds K and V: want k=...,v=...", f.coding)
	}
	return nil
}

// compressJSON is what --json prints.
type compressJSON struct {
	Input          string         `json:"input"`
	Output         string         `json:"output"`
	Target         string         `json:"target"`
	DefaultTarget  bool           `json:"default_target"`
	TargetBytes    int64          `json:"target_bytes"`
	Lossless       bool           `json:"lossless"`
	Bytes          int64          `json:"bytes"`
	Values         int64          `json:"values"`
	BitsPerValue   float64        `json:"bits_per_value"`
	SeenValues     int64          `json:"seen_values"`
	BitsPerSeen    float64        `json:"bits_per_seen_value"`
	OriginalBytes  int64          `json:"original_bytes"`
	SourceBytes    int64          `json:"source_bytes"`
	Ratio          float64        `json:"ratio"`
	PredictedError *float64       `json:"predicted_error"`
	MeasuredError  *float64       `json:"measured_error"`
	Sections       sectionsJSON   `json:"sections"`
	Codings        []codingJSON   `json:"codings"`
	Backend        backendJSON    `json:"backend"`
	Importance     importanceJSON `json:"importance"`
	Prices         pricesJSON     `json:"prices"`
	Profile        string         `json:"profile"`
	Config         string         `json:"config"`

	rows bool // errors are of rows, not of attention
}

// importanceJSON says how tokens were weighed.
type importanceJSON struct {
	Profile   string `json:"profile"`
	Heads     int    `json:"heads"`
	Collapsed int    `json:"collapsed"`
	Skipped   int    `json:"skipped"`
	Unweighed int    `json:"unweighed"`
	Expected  int    `json:"expected"`
	Reason    string `json:"reason"`
}

func (i importanceJSON) String() string {
	switch {
	case i.Reason != "":
		return "none: " + i.Reason
	case i.Profile == "none":
		return "none: all tokens of a head weigh the same"
	}
	s := i.Profile
	if i.Collapsed > 0 {
		s += fmt.Sprintf("; attention collapsed and not believed in %d of %d heads", i.Collapsed, i.Heads)
	}
	if i.Skipped > 0 {
		s += fmt.Sprintf("; queries with NaN or Inf, and those beside them, left out in %d of %d heads", i.Skipped, i.Heads)
	}
	if i.Expected > 0 {
		s += fmt.Sprintf("; attention expected from the profile's queries in %d of %d heads", i.Expected, i.Heads)
	}
	if i.Unweighed > 0 {
		s += fmt.Sprintf("; all tokens weigh the same in %d of %d heads, for want of queries", i.Unweighed, i.Heads)
	}
	return s
}

// pricesJSON says by what the errors of heads were priced.
type pricesJSON struct {
	Heads   int    `json:"heads"`
	Queries int    `json:"queries"`
	Profile int    `json:"profile"`
	StandIn int    `json:"stand_in"`
	Reason  string `json:"reason"`
}

func (x pricesJSON) String() string {
	const keys = "K without its mean, long rows held, stands in for queries"
	switch {
	case x.StandIn == 0 && x.Profile > 0:
		return "from the profile"
	case x.StandIn == 0:
		return "measured on the capture's last queries"
	case x.StandIn == x.Heads:
		return keys + ": " + x.Reason
	}
	return fmt.Sprintf("measured on the capture's last queries; in %d of %d heads %s: %s", x.StandIn, x.Heads, keys,
		x.Reason)
}

type sectionsJSON struct {
	Header  int64 `json:"header"`
	Payload int64 `json:"payload"`
	Tables  int64 `json:"tables"`
	Side    int64 `json:"side"`
	Index   int64 `json:"index"`
}

type codingJSON struct {
	Coding string  `json:"coding"`
	Values int64   `json:"values"`
	Share  float64 `json:"share"`
}

func (a *app) compress(ctx context.Context, name string, f *compressFlags,
	cfg kvfile.Config) (err error) {
	if name == stdStream && f.weights == stdStream {
		return usagef("the capture and --weights cannot both be standard input")
	}
	inputs := []string{name, f.weights, f.profile, modelInput(f.state.model)}
	if err := a.checkOutputs(inputs, destination{"-o", f.out, f.force}); err != nil {
		return err
	}
	src, in, weights, err := a.openSource(ctx, name, f, cfg.Profile)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	forState(src, &cfg)
	if err := f.checkSides(src.Info().KV); err != nil {
		return err
	}
	if f.weights != "" {
		layers := slices.Clone(src.Info().Layers)
		for i := range src.ActTensors() {
			layers = append(layers, i)
		}
		w, file, err := a.openWeights(ctx, f.weights, layers)
		if err != nil {
			return err
		}
		defer closing(file, &err)
		weights = w
	}
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	res, caps, err := a.compressTo(ctx, src, out, f, cfg, weights)
	out.finish(&err)
	if err != nil {
		return err
	}
	cfg.Weighted = weights != nil
	sum := summarise(res, caps, cfg)
	sum.Input, sum.Output, sum.rows = in.name, out.name, !src.Info().KV
	sum.DefaultTarget = cfg.Bits != 0 && f.bits == 0
	if e := sum.PredictedError; e != nil && *e >= warnError && !sum.rows {
		a.complain("warning: %s: predicted error of attention %s: do not trust a model with this file",
			out.name, percent(*e))
	}
	if f.json {
		return printJSON(a.summaryTo(f.out), sum)
	}
	p := &printer{w: a.summaryTo(f.out)}
	sum.print(p)
	return p.err
}

func (a *app) compressTo(ctx context.Context, src *capture.Source, out *output, f *compressFlags,
	cfg kvfile.Config,
	weights kvfile.Weights) (res *kvfile.Result, caps backend.Caps, err error) {
	be, err := a.openBackend(f.backend)
	if err != nil {
		return nil, caps, err
	}
	defer closing(be, &err)
	say, clear := a.progress()
	defer clear()
	res, err = kvfile.Compress(ctx, src, out, kvfile.Options{Config: &cfg, Backend: be, Weights: weights, Progress: say})
	return res, be.Caps(), err
}

func summarise(res *kvfile.Result, caps backend.Caps, cfg kvfile.Config) *compressJSON {
	s := res.Sections
	sum := &compressJSON{Target: targetText(&cfg), Bytes: res.Bytes, Values: res.Values,
		BitsPerValue: res.BitsPerValue, SeenValues: res.SeenValues, BitsPerSeen: res.BitsPerSeen, OriginalBytes: res.OriginalBytes, Ratio: res.Ratio,
		SourceBytes: res.SourceBytes, Profile: res.Profile, TargetBytes: res.TargetBytes, Lossless: res.Lossless,
		PredictedError: number(res.Predicted), Sections: sectionsJSON{s.Header, s.Payload, s.Tables,
			s.Side, s.Index},
		Codings: []codingJSON{}, Backend: describe(caps), Config: res.Config}
	sum.Importance, sum.Prices = importanceJSON(res.Importance), pricesJSON(res.Prices)
	if cfg.Weighted {
		sum.Importance.Profile = "weights handed in"
	}
	if cfg.MaxError > 0 {
		sum.MeasuredError = number(res.MeasuredError)
	}
	for name, n := range res.Codings {
		sum.Codings = append(sum.Codings, codingJSON{name, n, float64(n) / float64(max(1,
			res.Values))})
	}
	slices.SortFunc(sum.Codings, func(x, y codingJSON) int {
		return cmp.Or(cmp.Compare(y.Values, x.Values), cmp.Compare(x.Coding, y.Coding))
	})
	return sum
}

// targetText says what was asked for, as flags.
func targetText(c *kvfile.Config) string {
	g := func(x float64) string { return strconv.FormatFloat(x, 'g', 6, 64) }
	switch {
	case c.Bits > 0:
		return "--bits " + g(c.Bits)
	case c.Bytes > 0:
		return "--budget " + strconv.FormatInt(c.Bytes, 10)
	case c.Share > 0:
		return "--budget " + g(100*c.Share) + "%"
	case c.MaxError > 0:
		return "--max-error " + g(c.MaxError)
	}
	if c.Lossless {
		return "--lossless"
	}
	return "the codings given"
}

// outcome says where the size is not that of the target, and why.
func (s *compressJSON) outcome() string {
	switch {
	case s.TargetBytes == 0:
		return ""
	case s.Lossless && s.Bytes > s.TargetBytes:
		return fmt.Sprintf("; %s bytes are too few for any file of these tokens: every bit is kept", count(s.TargetBytes))
	case s.Lossless:
		return fmt.Sprintf("; every bit is kept: that takes less than the %s bytes of the target", count(s.TargetBytes))
	case s.Bytes > s.TargetBytes:
		return fmt.Sprintf("; the smallest file is larger than its %s bytes", count(s.TargetBytes))
	case s.Bytes < s.TargetBytes*9/10:
		return fmt.Sprintf("; %s of its bytes are not used: finer codings would change nothing", count(s.TargetBytes-s.Bytes))
	}
	return ""
}

func (s *compressJSON) print(p *printer) {
	p.printf("%s: %s bytes, %.4g bits/value, %s\n", s.Output, count(s.Bytes), s.BitsPerValue,
		sizeText(s.Bytes, s.OriginalBytes, s.SourceBytes))
	if s.SeenValues < s.Values {
		p.printf("seen       %s of values can be seen by later queries: %.4g bits for each\n", share(s.SeenValues, s.Values),
			s.BitsPerSeen)
	}
	target := s.Target
	if s.DefaultTarget {
		target += " (the default; --bits, --budget or --max-error set another)"
	}
	p.printf("target     %s%s\n", target, s.outcome())
	what := "relative squared error of attention outputs"
	if s.rows {
		what = "relative squared error of rows"
	}
	switch {
	case s.PredictedError != nil:
		p.printf("predicted  %s %s\n", percent(*s.PredictedError), what)
	case !s.rows && !s.Lossless:
		p.printf("predicted  nothing: no later query is known, or the archive is long; verify --against measures its error\n")
	}
	if s.MeasuredError != nil {
		p.printf("measured   %s future-attention error\n", percent(*s.MeasuredError))
	}
	if !s.rows {
		p.printf("importance %s\n", s.Importance)
	}
	if s.Prices.Heads > 0 {
		p.printf("prices     %s\n", s.Prices)
	}
	if s.Profile != "" {
		p.printf("profile    %.16s\n", s.Profile)
	}
	p.printf("backend    %s\n\n", s.Backend)
	t := newTable([]any{"section", "bytes", "share"}, 1, 2)
	for _, x := range []struct {
		name string
		n    int64
	}{{"payload", s.Sections.Payload}, {"tables", s.Sections.Tables}, {"side tensors",
		s.Sections.Side},
		{"header", s.Sections.Header}, {"index", s.Sections.Index}} {
		t.AppendRow([]any{x.name, count(x.n), share(x.n, s.Bytes)})
	}
	p.table(t)
	p.printf("\n")
	t = newTable([]any{"coding", "values", "share"}, 1, 2)
	for _, c := range s.Codings {
		t.AppendRow([]any{c.Coding, count(c.Values), share(c.Values, s.Values)})
	}
	p.table(t)
}
