// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// holdoutStandard is what --holdout without a value stands for.
const holdoutStandard = "standard"

type tuneFlags struct {
	out, model, name, bits, state, settings string
	texts, holdout                          []string
	context, next, needles, evaluations     int
	seed                                    uint64
	penalty                                 float64
	sensitivity, ablate, json, force        bool
	backend                                 backendFlags
}

func newTune(a *app) *cobra.Command {
	var f tuneFlags
	cmd := &cobra.Command{
		Use:   "tune [CAPTURE...] -o MODEL.kvprofile",
		Short: "Find the settings that suit a model, and write a profile",
		Long: `tune searches the settings (how signals weigh tokens, windows, sinks) with the least damage
at the rates --bits. It writes them to a profile for compress --profile.

With --model it measures the damage in the model, on --text or on the calibration texts that kvist
includes: the mean logarithm of KL(exact || compressed), plus --penalty for the share of answers lost
among --needles questions that come after compression. It also measures the sensitivity of every KV
head, which takes 2 * layers * kv_heads + 1 passes per text; --sensitivity=false skips this. Without a
model the damage is the future-attention error on the CAPTUREs, which need q_next, k_next and v_next.
That error does not show what later questions need, so use a model if you can.

The search is a grid over one setting after another, followed by an evolution strategy, --evaluations
in total. The same --seed gives the same result. With --state an interrupted search can be resumed:
run it again.

--holdout measures the start and the result on other data: text files (with --model) or captures;
without a value, the evaluation texts that kvist includes. Trust this number. --ablate also measures
there what each setting is worth.

If the output is an existing profile of the model, sections of other tools (kvist calibrate) are kept.
--force is needed to replace those of tune.

Fields of --json: output, profile (hash), model, objective, evaluations, seed, params, sensitivity
(exponent of the measured factors), start, best (value, params), holdout (bits, before, after: kl,
found, exact, asked, lost; ratio, lost), ablation (setting, value, ratio, lost), trail (stage, value,
params).`,
		Example: `  kvist tune --model smollm2 -o smollm2.kvprofile --holdout --state tune.json
  kvist tune --model model.gguf --text a.txt --text b.txt -o model.kvprofile --evaluations 200
  kvist tune one.safetensors two.safetensors -o model.kvprofile --holdout=three.safetensors`,
		Args: cobra.ArbitraryArgs,
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.tune(cmd.Context(), args, &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.StringVar(&f.model, "model", "", "`MODEL` to measure in: a GGUF file, or "+smolLM2)
	fl.StringArrayVar(&f.texts, "text", nil, "text `FILE` to tune on; may be given again")
	fl.StringArrayVar(&f.holdout, "holdout", nil, "`FILE` to measure the result on; may be given again")
	fl.Lookup("holdout").NoOptDefVal = holdoutStandard
	fl.StringVar(&f.name, "name", "", "`NAMES` of the model, separated by \" | \" (default: the model's own)")
	fl.StringVar(&f.bits, "bits", "2.75,2.25", "`rates` in bits per value of the whole file")
	fl.IntVar(&f.context, "context", 512, "`tokens` of each text to compress")
	fl.IntVar(&f.next, "next", 128, "`tokens` after the context, to measure on")
	fl.IntVar(&f.needles, "needles", 32, "`questions` asked after compression; 0: none")
	fl.Float64Var(&f.penalty, "penalty", 2, "added to the log of KL if all answers are lost")
	fl.IntVar(&f.evaluations, "evaluations", 100, "`number` of settings to evaluate")
	fl.Uint64Var(&f.seed, "seed", 1, "`seed` of the search and of the questions")
	fl.StringVar(&f.state, "state", "", "`FILE` that keeps the measurements, to resume from")
	fl.StringVar(&f.settings, "settings", "", "`NAMES` of the settings to search (default: all)")
	fl.BoolVar(&f.sensitivity, "sensitivity", true, "measure the sensitivity of heads in the model")
	fl.BoolVar(&f.ablate, "ablate", false, "measure on the holdout what each setting is worth")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace settings and sensitivities of an existing profile")
	f.backend.add(cmd)
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

func (f *tuneFlags) check(args []string) ([]float64, tune.Space, error) {
	switch {
	case f.out == stdStream:
		return nil, nil, usagef("-o -: a profile is a file")
	case f.model == "" && len(args) == 0:
		return nil, nil, usagef("nothing to tune on: give --model, or captures")
	case f.model != "" && len(args) > 0:
		return nil, nil, usagef("captures and --model: the model makes its own; give one of them")
	case f.model == "" && len(f.texts) > 0:
		return nil, nil, usagef("--text needs --model")
	case f.model == "" && slices.Contains(f.holdout, holdoutStandard):
		return nil, nil, usagef("--holdout without --model: name captures, --holdout=FILE")
	case f.model == "" && slices.ContainsFunc(f.holdout, func(h string) bool { return slices.Contains(args, h) }):
		return nil, nil, usagef("--holdout: it is one of the captures to tune on")
	case f.ablate && len(f.holdout) == 0:
		return nil, nil, usagef("--ablate needs --holdout")
	}
	for _, x := range []struct {
		name         string
		v, low, high int
	}{{"context", f.context, 64, 1 << 20}, {"next", f.next, 2, 1 << 20}, {"needles", f.needles, 0, 1 << 12},
		{"evaluations", f.evaluations, 1, 1 << 20}} {
		if x.v < x.low || x.v > x.high {
			return nil, nil, usagef("--%s %d: want %d to %d", x.name, x.v, x.low, x.high)
		}
	}
	if f.model != "" && f.needles > 0 && f.context < 256 {
		return nil, nil, usagef("--needles with --context %d: want 256 or more", f.context)
	}
	if !(f.penalty > 0 && f.penalty <= 100) {
		return nil, nil, usagef("--penalty %v: want above 0 and up to 100", f.penalty)
	}
	var bits []float64
	for part := range strings.SplitSeq(f.bits, ",") {
		b, err := strconv.ParseFloat(part, 64)
		if err != nil || !(b > 0 && b <= maxBits) {
			return nil, nil, usagef("--bits %q: want numbers above 0 and up to 64, separated by commas", f.bits)
		}
		bits = append(bits, b)
	}
	space, err := f.space()
	if err != nil {
		return nil, nil, err
	}
	return bits, space, f.backend.check()
}

// space is what --settings leaves of the default one.
func (f *tuneFlags) space() (tune.Space, error) {
	all := tune.DefaultSpace()
	if f.model != "" && f.sensitivity {
		all = append(all, sensitivityParam())
	}
	if f.settings == "" {
		return all, nil
	}
	var out tune.Space
	for name := range strings.SplitSeq(f.settings, ",") {
		i := slices.IndexFunc(all, func(p tune.Param) bool {
			return p.Name == name || p.Name == "importance."+name
		})
		if i < 0 {
			var names []string
			for _, p := range all {
				names = append(names, strings.TrimPrefix(p.Name, "importance."))
			}
			return nil, usagef("--settings: %q is none of %s", name, strings.Join(names, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// tuner is what tune measures with: the model, or captures.
type tuner interface {
	objective() tune.Objective
	// describe says what the objective is and was made from.
	describe() (objective, texts string)
	model() (string, quant.Geometry)
	// sensitivity gives the factors measured, nil where there are none, and how.
	sensitivity() (*profile.Sensitivity, profile.Meta)
	// holdout measures start and best on data not tuned on; nil where there is none.
	holdout(ctx context.Context, start, best profile.Params) (*holdoutJSON, error)
	// against measures what a change of the best settings does on the holdout.
	against(ctx context.Context, params profile.Params) (ratio, lost intervalJSON, err error)
}

func (a *app) tune(ctx context.Context, args []string, f *tuneFlags) (err error) {
	bits, space, err := f.check(args)
	if err != nil {
		return err
	}
	if err := a.checkOutputs(f.inputs(args), f.outputs()...); err != nil {
		return err
	}
	be, err := a.openBackend(f.backend)
	if err != nil {
		return err
	}
	defer closing(be, &err)
	say, clear := a.progress()
	defer clear()
	t, done, err := a.newTuner(ctx, args, f, bits, be, say)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	// A profile that is there but of another model is to be found before the work.
	base, err := f.existing(t)
	if err != nil {
		return err
	}
	res, err := tune.Search(ctx, space, t.objective(), tune.Options{Evaluations: f.evaluations,
		Seed: f.seed, State: f.state, Base: f.base(), Progress: func(p tune.Progress) {
			if say != nil {
				say(fmt.Sprintf("%s, best %.4f", p.Stage, p.Best), int64(p.Done), int64(p.Total))
			}
		}})
	if err != nil {
		return err
	}
	hold, err := t.holdout(ctx, res.Start.Params, res.Best.Params)
	if err != nil {
		return err
	}
	var worth []ablationJSON
	if f.ablate {
		if worth, err = ablate(ctx, t, space, res, say); err != nil {
			return err
		}
	}
	clear()
	p, err := f.profile(base, t, res, hold)
	if err != nil {
		return err
	}
	if err := p.Write(f.out, true); err != nil {
		return err
	}
	sum := tuneSummary(f, t, p, res, hold, worth)
	if f.json {
		return printJSON(a.stdout, sum)
	}
	out := &printer{w: a.stdout}
	sum.print(out)
	return out.err
}

// inputs are the files that are read.
func (f *tuneFlags) inputs(captures []string) []string {
	all := append(append([]string{modelInput(f.model)}, captures...), f.texts...)
	for _, h := range f.holdout {
		if h != holdoutStandard {
			all = append(all, h)
		}
	}
	return all
}

// outputs are the files that are written. They are read first, and replaced as they change.
func (f *tuneFlags) outputs() []destination {
	out := []destination{{"-o", f.out, true}}
	if f.state != "" {
		out = append(out, destination{"--state", f.state, true},
			destination{"--state", f.sensitivityState(), true})
	}
	return out
}

// sensitivityState is the file beside the state that keeps the sensitivities.
func (f *tuneFlags) sensitivityState() string { return f.state + ".kvprofile" }

// base are the settings that the search leaves alone: those of the default importance, so that a
// search of a few settings has the others.
func (f *tuneFlags) base() profile.Params {
	return profile.Params{"importance": "default"}
}

// existing returns the profile that the output becomes: the file that is there, or an empty one.
func (f *tuneFlags) existing(t tuner) (*profile.Profile, error) {
	name, geo := t.model()
	if f.name != "" {
		name = f.name
	}
	p, err := profile.Open(f.out, profile.Limits{})
	if errors.Is(err, fs.ErrNotExist) {
		dir := filepath.Dir(f.out)
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
		return profile.New(name, geo)
	}
	if err != nil {
		return nil, err
	}
	if err := p.Check(name, geo); err != nil {
		return nil, err
	}
	mine := []profile.Section{profile.SectionParams, profile.SectionSensitivity}
	for _, s := range mine {
		if !f.force && len(p.Tensors(s)) > 0 {
			return nil, fmt.Errorf("%s has %s already (--force replaces them): %w", f.out, s, fs.ErrExist)
		}
	}
	return p, nil
}

// profile puts the result into the profile.
func (f *tuneFlags) profile(base *profile.Profile, t tuner, res *tune.Result,
	hold *holdoutJSON) (*profile.Profile, error) {
	objective, texts := t.describe()
	meta := profile.Meta{"made-by": "kvist tune " + versionText(), "objective": objective,
		"texts": texts, "seed": strconv.FormatUint(f.seed, 10),
		"evaluations": strconv.Itoa(len(res.Trail)),
		"before":      formatValue(res.Start.Value), "after": formatValue(res.Best.Value)}
	if hold != nil {
		meta["holdout"] = hold.summary()
	}
	params := maps.Clone(res.Best.Params)
	power := powerOf(params)
	delete(params, sensitivitySetting)
	p, err := base.WithParams(params, meta)
	if err != nil {
		return nil, err
	}
	s, how := t.sensitivity()
	if s == nil || power == 0 {
		return p.WithSensitivity(nil, nil)
	}
	how["exponent"] = formatValue(power)
	return p.WithSensitivity(s.Power(power), how)
}

func powerOf(p profile.Params) float64 {
	x, err := strconv.ParseFloat(p[sensitivitySetting], 64)
	if err != nil {
		return 0
	}
	return x
}

func formatValue(v float64) string {
	if math.IsInf(v, 0) {
		return "none"
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}

// newTuner makes the tuner; done gives back what it holds.
func (a *app) newTuner(ctx context.Context, args []string, f *tuneFlags, bits []float64,
	be backend.Backend, say func(string, int64, int64)) (t tuner, done func() error, err error) {
	if f.model != "" {
		t, err = a.newModelTuner(ctx, f, bits, be, say)
		return t, func() error { return nil }, err
	}
	return a.newCaptureTuner(ctx, args, f, bits, be)
}
