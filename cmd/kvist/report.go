// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/cmd/kvist/internal/page"
	"github.com/kvist-project/kvist/engine/report"
)

type reportFlags struct {
	out         string
	json, force bool
	whyFlags
	backend backendFlags
}

func newReport(a *app) *cobra.Command {
	var f reportFlags
	cmd := &cobra.Command{
		Use:   "report FILE.kvist -o page.html",
		Short: "Make one HTML page about a file",
		Long: `report writes one self-contained page that needs no network: the bits of every token by
layer and head, the bytes by section, the codings, and the config. --against adds the loss of K, V
and future attention (see kvist verify). --why plans the file again from that capture and adds the
weight of each token, the expected damage, and the cost of other codings (see kvist inspect). An
archive has no blocks with a choice of codings; the page then says so.

--json writes the page's data as one JSON object instead, in the fields of kvfile.Report: kind,
version, model, config, bytes, values, bits_per_value, seen_values, bits_per_seen_value, ratio, layers,
sections, codings, map, errors
and so on.`,
		Example: `  kvist report cache.kvist -o cache.html
  kvist report cache.kvist -o cache.html --against cache.safetensors
  kvist report cache.kvist -o - --json | jq .codings`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if err := f.backend.check(); err != nil {
				return err
			}
			if f.why && (f.against == "" || f.against == stdStream) {
				return usagef("--why needs --against, a file: it is read twice")
			}
			return a.report(cmd.Context(), args[0], &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.StringVar(&f.against, "against", "", "`ORIGINAL` capture to measure the error against")
	f.whyFlags.add(cmd)
	fl.BoolVar(&f.json, "json", false, "write the data as JSON instead of a page")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists")
	f.backend.add(cmd)
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

func (a *app) report(ctx context.Context, name string, f *reportFlags) (err error) {
	if name == stdStream && f.against == stdStream {
		return usagef("FILE and --against cannot both be standard input")
	}
	inputs := []string{name, f.against, f.weights, f.profile}
	if err := a.checkOutputs(inputs, destination{"-o", f.out, f.force}); err != nil {
		return err
	}
	r, in, err := a.openContainer(ctx, name)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	defer func() {
		out.finish(&err)
		if err == nil && f.out != stdStream {
			p := &printer{w: a.stdout}
			p.printf("%s: written\n", out.name)
			err = p.err
		}
	}()
	var cmp *report.Comparison
	if f.against != "" {
		var profiles []string
		if f.profile != "" {
			profiles = append(profiles, f.profile)
		}
		ps, err := a.openProfiles(ctx, profiles)
		if err != nil {
			return err
		}
		if cmp, _, err = a.compare(ctx, r, f.against, ps, f.backend); err != nil {
			return err
		}
	}
	rep, err := report.Build(ctx, r, cmp)
	if err != nil {
		return err
	}
	rep.File = in.name
	switch {
	case f.why && rep.Archive:
		rep.WhyNot = "an archive has no blocks to choose codings for"
		a.complain("--why is left out: %s", rep.WhyNot)
	case f.why:
		why, err := a.explain(ctx, r, &f.whyFlags, f.backend)
		if err != nil {
			return err
		}
		if err := rep.AddWhy(why); err != nil {
			return err
		}
	}
	w := bufio.NewWriterSize(out, 1<<20)
	if f.json {
		err = printJSON(w, rep)
	} else {
		err = page.Write(w, rep, buildVersion().Version)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}
