// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
)

type decompressFlags struct {
	out                  string
	salvage, json, force bool
	profiles             []string
}

func newDecompress(a *app) *cobra.Command {
	var f decompressFlags
	cmd := &cobra.Command{
		Use:   "decompress IN.kvist -o OUT",
		Short: "Restore the capture from a .kvist file",
		Long: `decompress writes a capture: safetensors with layers.N.k and layers.N.v, the tensors of
activations, or an .npy if the original was one. Originals in .npz and GGUF come back as safetensors,
rows of F64 as F32, rows of FP8 and I8 as F16. Side tensors come back exactly. layers.N.bias holds the
row bias of coarse rows. layers.N.kept marks tokens that were dropped or lost.

A file made from a state of llama.cpp comes back as that state, unless OUT ends in .safetensors.

--salvage reads the intact parts of a damaged file and lists the lost parts on standard error. Lost
tokens are zeros. The exit status is then 3, although the output was written.

Fields of --json: input, output, tensors, bytes, dropped_rows, lost (texts).`,
		Example: `  kvist decompress cache.kvist -o cache.safetensors
  kvist decompress embeddings.kvist -o embeddings.npy
  kvist decompress broken.kvist -o rest.safetensors --salvage`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.decompress(cmd.Context(), args[0], &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.StringArrayVar(&f.profiles, "profile", nil, "profile `FILE` that an archive was coded with")
	fl.BoolVar(&f.salvage, "salvage", false, "read the intact parts of a damaged file")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists")
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

// decompressJSON is what --json prints.
type decompressJSON struct {
	Input       string   `json:"input"`
	Output      string   `json:"output"`
	Tensors     int      `json:"tensors"`
	Bytes       int64    `json:"bytes"`
	DroppedRows int64    `json:"dropped_rows"`
	Lost        []string `json:"lost"`
}

func (a *app) decompress(ctx context.Context, name string, f *decompressFlags) (err error) {
	inputs := append([]string{name}, f.profiles...)
	if err := a.checkOutputs(inputs, destination{"-o", f.out, f.force}); err != nil {
		return err
	}
	in, err := a.openInput(ctx, name)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	r, damage, err := openSalvage(in, f.salvage)
	if err != nil {
		return err
	}
	state := madeOfState(r, f.out)
	if err := checkExtension(f.out, r.Header()); err != nil && !state {
		return err
	}
	profiles, err := a.openProfiles(ctx, f.profiles)
	if err != nil {
		return err
	}
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	say, clear := a.progress()
	o := kvfile.Options{Salvage: f.salvage, Progress: say, Profiles: profiles}
	var res *kvfile.Restored
	if state {
		res, err = restoreState(ctx, in.name, r, out, o)
	} else {
		res, err = kvfile.Decompress(ctx, r, out, o)
	}
	clear()
	out.finish(&err)
	if err != nil {
		return err
	}
	lost := append(damage, res.Lost...)
	if f.json {
		err = printJSON(a.summaryTo(f.out), decompressJSON{in.name, out.name, res.Tensors,
			res.Bytes,
			res.DroppedRows, append([]string{}, lost...)})
	} else {
		p := &printer{w: a.summaryTo(f.out)}
		p.printf("%s: %s bytes, %d tensors\n", out.name, count(res.Bytes), res.Tensors)
		if res.DroppedRows > 0 {
			p.printf("%s tokens of a head are zeros, marked in layers.N.kept\n",
				count(res.DroppedRows))
		}
		err = p.err
	}
	for _, l := range lost {
		a.complain("lost: %s", l)
	}
	if err == nil && len(lost) > 0 {
		return errLost
	}
	return err
}

// openSalvage opens a .kvist file, with salvage what is intact of it; lost says what is not.
func openSalvage(in *input, salvage bool) (r *container.Reader, lost []string, err error) {
	if !salvage {
		r, err = openKvist(in)
		return r, nil, err
	}
	r, damage, err := container.Salvage(in.name, in, in.size, container.Limits{})
	if err != nil {
		return nil, nil, err
	}
	boundMemory(r)
	for _, d := range damage {
		lost = append(lost, oneLine(d))
	}
	return r, lost, nil
}

// checkExtension refuses a name that promises another format than the file was made from.
func checkExtension(name string, h *container.Header) error {
	format := "safetensors"
	if h.Kind == container.KindRows && h.Origin == "npy" && len(h.Tensors) == 1 {
		format = "npy"
	}
	switch ext := strings.TrimPrefix(strings.ToLower(filepath.Ext(name)), "."); {
	case name == stdStream || ext == format:
	case ext == "npz", ext == "gguf":
		return &usageError{err: errors.New("-o " + name + ": the file is written as ." + format)}
	case ext == "npy", ext == "safetensors":
		return &usageError{err: errors.New("-o " + name + ": the file was made from ." + format +
			" and is written as that")}
	}
	return nil
}
