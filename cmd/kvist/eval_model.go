// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Names that stand for the models of the tests, where fetch-model.sh and fetch-gemma.sh put them.
const (
	smolLM2 = "smollm2"
	gemma   = "gemma"
)

// modelThreads bounds --threads of the verbs that run a model.
const modelThreads = 1 << 10

// modelFlags are those of every verb that runs a model.
type modelFlags struct {
	threads int
	fast    bool // int8 activations
}

func (f *modelFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.threads, "threads", 0, "CPU `threads` to use; 0: all")
}

func (f *modelFlags) check() error {
	if f.threads < 0 || f.threads > modelThreads {
		return usagef("--threads %d: want 0 to %d", f.threads, modelThreads)
	}
	return nil
}

// modelPath is the file that name stands for: itself, or that of smollm2 or gemma.
func modelPath(name string) (string, error) {
	switch name {
	case smolLM2:
		return model.Find()
	case gemma:
		return model.FindGemma()
	}
	return name, nil
}

// modelInput is modelPath for checkOutputs: "" where there is no such file, which open tells.
func modelInput(name string) string {
	path, err := modelPath(name)
	if err != nil {
		return ""
	}
	return path
}

// open loads the model called name: a GGUF file, smollm2 or gemma. It is to run so many positions.
func (f *modelFlags) open(name string, positions int) (*model.Model, error) {
	path, err := modelPath(name)
	if err != nil {
		return nil, err
	}
	file, _, err := openPlain(path) // not a FIFO, which would wait for its other end
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	return model.Open(path, model.Options{Workers: f.threads, Context: positions, Fast: f.fast})
}

// maxText bounds a text file: a model's context is some hundred thousand tokens.
const maxText = 64 << 20

// readText reads a text file; "-" is standard input.
func (a *app) readText(ctx context.Context, name string) (string, error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return "", err
	}
	defer in.Close()
	if in.size > maxText {
		return "", fmt.Errorf("text %s: %d bytes, the limit is %d: %w", in.name, in.size, maxText,
			quant.ErrTooLarge)
	}
	b, err := io.ReadAll(io.NewSectionReader(in, 0, in.size))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", in.name, err)
	}
	return string(b), nil
}

// parseLayers reads "all" or numbers joined by commas; nil stands for all.
func parseLayers(s string, layers int) ([]int, error) {
	if s == "all" {
		return nil, nil
	}
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 0 || n >= layers {
			return nil, fmt.Errorf("layer %q: want all, or numbers from 0 to %d", part, layers-1)
		}
		for _, m := range out {
			if m == n {
				return nil, fmt.Errorf("layer %d is named twice", n)
			}
		}
		out = append(out, n)
	}
	return out, nil
}

// resultFiles are the ends of the names of the files in --results.
var resultFiles = []string{".md", ".json", ".svg"}

// outputs are the files that are written.
func (f *evalFlags) outputs() []destination {
	out := []destination{{"--plot", f.plot, f.force}, {"--html", f.html, f.force}}
	if _, err := os.Stat(f.results); err == nil { // not "", nor a folder that is still to be made
		for _, ext := range resultFiles {
			out = append(out, destination{"--results", filepath.Join(f.results, f.name+ext), true})
		}
	}
	return out
}

// evalInputs are the files that are read: the model, the texts, and the profiles of methods.
func evalInputs(args []string, list []methods.Method) []string {
	all := append([]string{modelInput(args[0])}, args[1:]...)
	for _, m := range list {
		if k, ok := m.(methods.Kvist); ok {
			all = append(all, k.Path)
		}
	}
	return all
}
