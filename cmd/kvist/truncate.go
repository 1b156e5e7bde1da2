// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/kvfile"
)

type truncateFlags struct {
	out, budget string
	bits        float64
	json, force bool
}

func newTruncate(a *app) *cobra.Command {
	var f truncateFlags
	cmd := &cobra.Command{
		Use:   "truncate IN.kvist -o OUT.kvist --bits BITS",
		Short: "Make an archive coarser without coding it again",
		Long: `truncate drops streams of an archive until it has the target size. It drops the streams that
tell least for their bytes first, and those of sinks and heavy tokens last. It needs neither the
original nor the profile, and is as fast as copying.

A file made with compress --streams has its rows in stages, each of which halves the steps. With 4
stages it can be cut to about a third of its size with little more error than coding the original at
that size. In a file made without --streams, only whole heads of a segment can be dropped. The file
records the worth of its streams. The predicted error is the squared error relative to the energy of
the rows beside their means, with the weights of tokens and heads of the compression. If it is more
than twice the error of coding the original at that size, or a head would be lost, truncate writes no
file, unless --force is given.

Fields of --json: input, output, bytes, bits_per_value, streams, dropped, heads_lost (sides of heads
that lost all of a segment), predicted_error, error_before (of the input), error_afresh (of coding the
original at that size).`,
		Example: `  kvist compress cache.safetensors -o cache.kvist --form archive --bits 2 --streams 4
  kvist truncate cache.kvist -o small.kvist --bits 1.5`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("bits") == (f.budget != "") {
				return usagef("give one of --bits and --budget")
			}
			if f.budget == "" {
				if err := checkBits(f.bits); err != nil {
					return err
				}
			}
			return a.truncate(cmd.Context(), args[0], &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.Float64Var(&f.bits, "bits", 0, "target in `bits` per value, all bytes counted")
	fl.StringVar(&f.budget, "budget", "", "target in `BYTES` (1500000, 1.5M, 2GiB) or percent of f16 (10%)")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists, and write it however large the predicted error")
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

type truncatedJSON struct {
	Input        string  `json:"input"`
	Output       string  `json:"output"`
	Bytes        int64   `json:"bytes"`
	BitsPerValue float64 `json:"bits_per_value"`
	Streams      int     `json:"streams"`
	Dropped      int     `json:"dropped"`
	Heads        int     `json:"heads_lost"`
	Predicted    float64 `json:"predicted_error"`
	Before       float64 `json:"error_before"`
	Afresh       float64 `json:"error_afresh"`
}

func (a *app) truncate(ctx context.Context, name string, f *truncateFlags) (err error) {
	err = a.checkOutputs([]string{name}, destination{"-o", f.out, f.force})
	if err != nil {
		return err
	}
	r, in, err := a.openContainer(ctx, name)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	values := r.Header().Values()
	total := int64(f.bits * float64(values) / 8)
	if f.budget != "" {
		bytes, share, err := parseBudget(f.budget)
		if err != nil {
			return &usageError{err: err}
		}
		total = bytes + int64(share*float64(2*values))
	}
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	say, clear := a.progress()
	res, err := kvfile.Truncate(ctx, r, out, total, kvfile.Options{Force: f.force, Progress: say})
	clear()
	out.finish(&err)
	var coarse *kvfile.CoarseError
	if errors.As(err, &coarse) {
		return fmt.Errorf("%w; code the original again, or give --force", err)
	}
	if err != nil {
		return err
	}
	e := &res.Predicted
	sum := &truncatedJSON{in.name, out.name, res.Bytes, res.BitsPerValue, res.Streams, res.Dropped,
		res.Heads, e.Error, e.Now, e.Afresh}
	if f.json {
		return printJSON(a.summaryTo(f.out), sum)
	}
	p := &printer{w: a.summaryTo(f.out)}
	p.printf("%s: %s bytes, %.4g bits/value, %s of %s streams dropped\n", sum.Output, count(sum.Bytes),
		sum.BitsPerValue, count(int64(sum.Dropped)), count(int64(sum.Streams)))
	p.printf("predicted error %s, %s before", percent(e.Error), percent(e.Now))
	if sum.Dropped > 0 {
		p.printf("; about %.2g times that of coding the original at that size", e.Times())
	}
	p.printf("\n")
	if sum.Heads > 0 {
		p.printf("%s times a head lost all K or V of a segment\n", count(int64(sum.Heads)))
	}
	return p.err
}
