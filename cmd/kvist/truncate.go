// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/offline"
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
		Short: "Make a coarser archive of an archive without coding it again",
		Long: `truncate drops streams of a file that compress --form archive --streams made, those whose
bytes tell the least, until the file has the size that is asked for. Neither the original nor the
profile is needed. A file coded at that size from the start is better; this one is made at the speed
of a copy.

Fields of --json: input, output, bytes, bits_per_value, streams, dropped.`,
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
	fl.Float64Var(&f.bits, "bits", 0, "target in `bits` a value, all bytes counted")
	fl.StringVar(&f.budget, "budget", "", "target in `BYTES` (1500000, 1.5M, 2GiB) or percent of f16 (10%)")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists")
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
	values := offline.Values(r.Header())
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
	res, err := offline.Truncate(ctx, r, out, total, say)
	clear()
	out.finish(&err)
	if err != nil {
		return err
	}
	sum := &truncatedJSON{in.name, out.name, res.Bytes, res.BitsPerValue, res.Streams, res.Dropped}
	if f.json {
		return printJSON(a.summaryTo(f.out), sum)
	}
	p := &printer{w: a.summaryTo(f.out)}
	p.printf("%s: %s bytes, %.4g bits/value, %s of %s streams dropped\n", sum.Output, count(sum.Bytes),
		sum.BitsPerValue, count(int64(sum.Dropped)), count(int64(sum.Streams)))
	return p.err
}
