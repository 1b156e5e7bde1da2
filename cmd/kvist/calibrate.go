// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/offline"
	"github.com/kvist-project/kvist/engine/profile"
)

type calibrateFlags struct {
	out         string
	json, force bool
}

func newCalibrate(a *app) *cobra.Command {
	var f calibrateFlags
	cmd := &cobra.Command{
		Use:   "calibrate CAPTURE... -o model.kvprofile",
		Short: "Learn a model's basis for the archive from captures",
		Long: `calibrate reads captures of one model, with queries (kvist capture makes them, --o-weight
adds the metric of V), and writes what compress --form archive --profile codes with: for every head
a basis for K in the metric of the queries and one for V in that of the output projection, means and
deviations of the components, and the tables of the coder. Take at least four texts, other ones than
those to be compressed.

With -o naming a profile that exists, only these parts of it are replaced.

Fields of --json: output, bytes, captures, tokens, id, archive_id.`,
		Example: `  kvist capture smollm2 book.txt --o-weight -o book.safetensors
  kvist calibrate *.safetensors -o smollm2.kvprofile
  kvist compress cache.safetensors -o cache.kvist --form archive --profile smollm2.kvprofile`,
		Args: cobra.MinimumNArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.calibrate(cmd.Context(), args, &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "start a new profile if the output exists")
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
	var old *profile.Profile
	if !f.force {
		old, err = profile.Open(f.out, profile.Limits{})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
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
		sum.Tokens += src.Tokens()
	}
	say, clear := a.progress()
	p, err := offline.Calibrate(ctx, captures, old, say)
	clear()
	if err != nil {
		return err
	}
	if err := p.Write(f.out, true); err != nil {
		return err
	}
	st, err := os.Stat(f.out)
	if err != nil {
		return err
	}
	sum.Bytes, sum.ID, sum.ArchiveID = st.Size(), p.ID().Full(), offline.ArchiveID(p).Full()
	if f.json {
		return printJSON(a.stdout, sum)
	}
	pr := &printer{w: a.stdout}
	pr.printf("%s: %s bytes, from %d captures of %s tokens\n", f.out, count(sum.Bytes), sum.Captures,
		count(int64(sum.Tokens)))
	pr.printf("basis and tables %s\n", offline.ArchiveID(p))
	return pr.err
}

// openProfile reads the profile of a flag; nil where none was given.
func openProfile(name string) (*profile.Profile, error) {
	if name == "" {
		return nil, nil
	}
	p, err := profile.Open(name, profile.Limits{})
	if err != nil {
		return nil, fmt.Errorf("--profile: %w", err)
	}
	return p, nil
}
