// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/tuning"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
)

// fewCaptures is how many captures tell what a model does with texts in general: with fewer, bases
// and tables are fitted to the texts.
const fewCaptures = 4

type calibrateFlags struct {
	out, runs   string
	texts       []string
	names       []string
	bits        float64
	next        int
	json, force bool
	onlyQueries bool
	predictors  string
	backend     backendFlags
}

func newCalibrate(a *app) *cobra.Command {
	var f calibrateFlags
	cmd := &cobra.Command{
		Use:   "calibrate CAPTURE... -o model.kvprofile",
		Short: "Learn a model's bases for archives from captures",
		Long: `calibrate reads captures of one model, with queries, and writes what compress --form archive
--profile needs: for every head a basis for K in the metric of the queries and one for V in the metric
of the output projection, the means and deviations of the components, and the tables of the coder. It
also writes mean and variance of the queries, by which compress weighs the tokens of caches that come
without queries; --only-queries adds these to a profile and leaves the rest of it.

--predictors says what is learnt of how heads tell K and V of each other, which makes archives a sixth
smaller and the profile larger: with (the rest of the profile, the default), only (added to a profile
made from the same captures) or without.

kvist capture makes the captures; --o-weight adds the metric of V. Use at least four texts, and not
those that will be compressed.

If the output is an existing profile, only these parts of it are replaced.

With --model and --text, calibrate measures in the model how errors in each layer change its
predictions, and makes the steps of sensitive layers finer. Running it again refines the profile.
Without captures, it does only this.

A profile fits captures of its model only; kvist compares shape and name. --also-named adds another
name of the same model. kvist trusts that name.

Fields of --json: output, bytes, captures, tokens, id, archive_id.`,
		Example: `  kvist capture smollm2 book.txt --o-weight -o book.safetensors
  kvist calibrate *.safetensors -o smollm2.kvprofile
  kvist compress cache.safetensors -o cache.kvist --form archive --profile smollm2.kvprofile
  kvist calibrate -o smollm2.kvprofile --also-named SmolLM2-135M-Instruct`,
		Args: cobra.ArbitraryArgs,
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.calibrate(cmd.Context(), args, &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.StringVar(&f.runs, "model", "", "`MODEL` to measure steps in: a GGUF file, or smollm2")
	fl.StringArrayVar(&f.texts, "text", nil, "text `FILE` to measure steps on, may be given again")
	fl.StringArrayVar(&f.names, "also-named", nil, "other `NAME` of the same model, may be given again")
	fl.Float64Var(&f.bits, "bits", 1.4, "`bits` per value at which to measure steps")
	fl.IntVar(&f.next, "next", 128, "`tokens` after the context to measure on")
	fl.BoolVar(&f.onlyQueries, "only-queries", false,
		"add what the captures say of queries, which weighs caches without queries, and leave the rest of the profile")
	fl.StringVar(&f.predictors, "predictors", "with", "how heads tell of each other: `with` the rest, only, or without")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "start a new profile if the output exists")
	f.backend.add(cmd)
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

type calibratedJSON struct {
	Output    string `json:"output"`
	Bytes     int64  `json:"bytes"`
	Captures  int    `json:"captures"`
	Tokens    int    `json:"tokens"`
	ID        string `json:"id"`
	ArchiveID string `json:"archive_id"`
}

func (a *app) calibrate(ctx context.Context, names []string, f *calibrateFlags) (err error) {
	if len(names) == 0 && f.runs == "" && len(f.names) == 0 {
		return usagef("neither captures nor --model: nothing to learn from")
	}
	if (f.runs == "") != (len(f.texts) == 0) {
		return usagef("--model and --text go together")
	}
	if err := checkBits(f.bits); err != nil {
		return err
	}
	if err := f.backend.check(); err != nil {
		return err
	}
	if f.predictors != "with" && f.predictors != "only" && f.predictors != "without" {
		return usagef("--predictors %s: want with, only or without", f.predictors)
	}
	if f.out == stdStream {
		return usagef("-o -: a profile is a file")
	}
	inputs := append(append([]string{modelInput(f.runs)}, names...), f.texts...)
	// A profile that is there is refined: it is replaced with or without --force.
	if err := a.checkOutputs(inputs, destination{"-o", f.out, true}); err != nil {
		return err
	}
	if n := len(names); n > 0 && n < fewCaptures {
		a.complain("warning: %d of the %d captures or more that a profile should be learnt from: "+
			"it will suit these texts better than others", n, fewCaptures)
	}
	var old *profile.Profile
	if !f.force {
		old, err = profile.Open(f.out, profile.Limits{})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if old != nil {
		if old, err = old.Named(f.names...); err != nil {
			return &usageError{err: err}
		}
	}
	if f.onlyQueries && (old == nil || len(names) == 0) {
		return usagef("--only-queries adds to a profile that is there what captures say of queries: %s", f.out)
	}
	if f.predictors == "only" && (f.onlyQueries || old == nil || len(names) == 0) {
		return usagef("--predictors only adds to a profile that is there what captures say: %s", f.out)
	}
	sum := &calibratedJSON{Output: f.out, Captures: len(names)}
	var captures []*capture.Source
	for _, name := range names {
		src, in, err := a.openCapture(ctx, name)
		if err != nil {
			return err
		}
		defer closing(in, &err)
		captures = append(captures, src)
		sum.Tokens += src.Info().Tokens
	}
	say, clear := a.progress()
	defer clear()
	p := old
	if len(captures) > 0 {
		be, err := a.openBackend(f.backend)
		if err != nil {
			return err
		}
		defer closing(be, &err)
		switch {
		case f.onlyQueries:
			p, err = tune.WithQueries(ctx, captures, old)
		case f.predictors == "only":
			p, err = tune.WithPredictors(ctx, captures, old, say)
		default:
			p, err = tune.Calibrate(ctx, captures, be, old, say)
			if err == nil && f.predictors == "with" {
				p, err = tune.WithPredictors(ctx, captures, p, say)
			}
		}
		if err != nil {
			return err
		}
	}
	if p == nil {
		return fmt.Errorf("%s: no profile to refine, and no captures to make one from: %w", f.out, fs.ErrNotExist)
	}
	if p, err = p.Named(f.names...); err != nil { // one that is new
		return &usageError{err: err}
	}
	if f.runs != "" {
		if p, err = a.measureSteps(ctx, f, p, say); err != nil {
			return err
		}
	}
	clear()
	if err := p.Write(f.out, true); err != nil {
		return err
	}
	st, err := os.Stat(f.out)
	if err != nil {
		return err
	}
	sum.Bytes, sum.ID, sum.ArchiveID = st.Size(), p.ID().Full(), p.ArchiveID().Full()
	if f.json {
		return printJSON(a.stdout, sum)
	}
	pr := &printer{w: a.stdout}
	pr.printf("%s: %s bytes, from %d captures of %s tokens\n", f.out, count(sum.Bytes), sum.Captures,
		count(int64(sum.Tokens)))
	pr.printf("archives name it %s\n", p.ArchiveID())
	return pr.err
}

// measureSteps adds to a profile what the model says about steps.
func (a *app) measureSteps(ctx context.Context, f *calibrateFlags, p *profile.Profile,
	say func(string, int64, int64)) (*profile.Profile, error) {
	m, err := (&modelFlags{threads: f.backend.threads}).open(f.runs, 0)
	if err != nil {
		return nil, err
	}
	o := quality.Options{Next: f.next, Progress: say}
	inputs, _, err := a.evalTexts(ctx, m, f.texts, &evalFlags{context: 1024, next: f.next})
	if err != nil {
		return nil, err
	}
	steps, err := tuning.ArchiveSteps(ctx, m, inputs, p, f.bits, o)
	if err != nil {
		return nil, err
	}
	return tune.WithArchiveSteps(p, steps, profile.Meta{"texts": fmt.Sprint(len(f.texts)),
		"bits": fmt.Sprint(f.bits)})
}

// openProfiles reads the profiles of a flag that may be given again.
func (a *app) openProfiles(ctx context.Context, names []string) ([]*profile.Profile, error) {
	var all []*profile.Profile
	for _, n := range names {
		p, err := a.openProfile(ctx, n)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}
