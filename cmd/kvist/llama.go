// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// stateFlags say what a state of llama.cpp does not.
type stateFlags struct {
	model, pairs string
	run, plain   bool
	runSet       bool // run was asked for, or not wanted
}

func (f *stateFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.model, "model", "", "llama.cpp state: the `MODEL` that it is of, a GGUF file, smollm2 or gemma")
	fl.BoolVar(&f.run, "run-model", true,
		"llama.cpp state: run --model over its tokens for the queries that the state lacks (default: unless a profile knows them)")
	fl.StringVar(&f.pairs, "rope-pairs", "",
		"llama.cpp state without --model: `which` components RoPE turns together there: neighbours or halves")
	fl.BoolVar(&f.plain, "no-rotation", false,
		"llama.cpp state: its q8_0 or q4_0 cache is not rotated (older versions, LLAMA_ATTN_ROT_DISABLE)")
}

// isState reports whether an input is a state of llama.cpp.
func isState(in *input) bool {
	var head [4]byte
	_, err := in.ReadAt(head[:], 0)
	return err == nil && llamastate.Is(head[:])
}

// openState turns a state into a temporary capture; without facts of the model where every bit is kept.
func (a *app) openState(ctx context.Context, in *input, f *compressFlags, p *profile.Profile) (*input, error) {
	st, err := llamastate.Open(in.name, in, in.size, llamastate.Limits{})
	if err != nil {
		return nil, err
	}
	if f.lossless {
		return scratchInput(in.name, func(w io.WriterAt) error { return st.Rows(ctx, w) })
	}
	facts, err := f.state.facts(st, p)
	if err != nil {
		return nil, err
	}
	run := f.state.run
	if p != nil && !f.state.runSet {
		known, err := p.Queries()
		if err != nil {
			return nil, err
		}
		run = known == nil
	}
	var queries *input
	if run {
		if queries, err = a.stateQueries(ctx, st, &f.state); err != nil {
			return nil, err
		}
	}
	if queries == nil {
		return scratchInput(in.name, func(w io.WriterAt) error { return st.Capture(ctx, w, facts, nil) })
	}
	defer queries.Close()
	q, err := capture.New(queries.name, queries, queries.size, capture.Limits{})
	if err != nil {
		return nil, err
	}
	out, err := scratchInput(in.name, func(w io.WriterAt) error { return st.Capture(ctx, w, facts, q) })
	if err != nil {
		return nil, err
	}
	if err := checkSameRun(out, q); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// scratchInput writes a temporary file and opens it under a name.
func scratchInput(name string, write func(w io.WriterAt) error) (*input, error) {
	s, err := atomicfile.NewScratch()
	if err != nil {
		return nil, err
	}
	var size int64
	if err = write(s); err == nil {
		size, err = s.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &input{ReaderAt: s, Closer: s, name: name, size: size}, nil
}

// facts returns what the model or a profile says.
func (f *stateFlags) facts(st *llamastate.State, p *profile.Profile) (llamastate.Facts, error) {
	facts := llamastate.Facts{Plain: f.plain}
	switch {
	case f.model != "":
		path, err := modelPath(f.model)
		if err != nil {
			return facts, err
		}
		c, err := model.ReadConfig(path, len(st.Tokens()))
		if err != nil {
			return facts, err
		}
		facts.Geometry, err = c.CacheGeometry()
		facts.Model, facts.Interleaved = c.Name, c.Interleaved()
		return facts, err
	case p == nil:
		return facts, usagef("a state of llama.cpp lacks heads, head_dim, windows and RoPE of its model: give --model, or " +
			"--profile and --rope-pairs, or --lossless, which needs none of them")
	case f.pairs != "neighbours" && f.pairs != "halves":
		return facts, usagef("a state of llama.cpp does not say which components of K RoPE turns together: give --model, or " +
			"--rope-pairs neighbours (llama, smollm3, granite) or halves (qwen, gemma, phi3)")
	}
	facts.Geometry, facts.Model, facts.Interleaved = p.Geometry(), "", f.pairs == "neighbours"
	return facts, nil
}

// stateQueries runs the model over the tokens of a state and returns a capture of it; nil where that is not possible. What llama.cpp computed and what this run computes differ by rounding only.
func (a *app) stateQueries(ctx context.Context, st *llamastate.State, f *stateFlags) (*input, error) {
	if f.model == "" {
		return nil, nil
	}
	if why := notFromStart(st); why != "" {
		a.complain("no queries: the model cannot be run over the tokens of the state: %s", why)
		return nil, nil
	}
	m, err := new(modelFlags).open(f.model, len(st.Tokens()))
	if err != nil {
		return nil, err
	}
	return scratchInput("queries of "+f.model, func(w io.WriterAt) error {
		return m.Capture(ctx, w, st.Tokens(), model.CaptureOptions{})
	})
}

// notFromStart says why the tokens of a state are not all that a model has seen.
func notFromStart(st *llamastate.State) string {
	n, i := len(st.Tokens()), st.Info()
	cells, first, last := 0, int32(-1), int32(-1)
	for _, c := range i.Caches {
		if c.Cells > cells {
			cells, first, last = c.Cells, c.First, c.Last
		}
	}
	switch {
	case n == 0:
		return "it has no list of tokens"
	case n != cells:
		return fmt.Sprintf("it lists %d tokens and has %d cells", n, cells)
	case first != 0 || int(last) != n-1:
		return fmt.Sprintf("its positions are %d to %d", first, last)
	}
	return ""
}

// mostOff is the relative squared difference of K from which a state is not believed to be of a model. Rounding,
// the 4 bits of q4_0 among it, stays below a hundredth.
const mostOff = 0.1

// checkSameRun compares K of the first layer.
func checkSameRun(in *input, q *capture.Source) error {
	src, err := capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return err
	}
	a, _ := src.KV(0, capture.K)
	b, ok := q.KV(0, capture.K)
	if !ok {
		return nil
	}
	// Of a layer with a window the state has the last tokens only.
	n := min(a.Rows()-int(src.Info().Geometry.Outside(0, int64(a.Rows()))), 256)
	x, y := make([]float32, n*a.Dim()), make([]float32, n*a.Dim())
	if err := errors.Join(a.ReadF32(0, a.Rows()-n, n, x), b.ReadF32(0, a.Rows()-n, n, y)); err != nil {
		return err
	}
	var off, all float64
	for i := range x {
		d := float64(x[i] - y[i])
		off, all = off+d*d, all+float64(y[i]*y[i])
	}
	if off > mostOff*all {
		return fmt.Errorf("%s: K of the first layer is %.2g off what --model gives for its tokens (relative squared): it is of "+
			"another model, or --no-rotation is wrong: %w", in.name, off/all, quant.ErrShape)
	}
	return nil
}

// madeOfState reports whether a .kvist file was made from a state of llama.cpp, and is to be restored to one: unless
// -o asks for a capture.
func madeOfState(r *container.Reader, out string) bool {
	infos, err := r.Auxes()
	if err != nil || strings.EqualFold(filepath.Ext(out), ".safetensors") {
		return false
	}
	for _, i := range infos {
		if i.Name == llamastate.NameFrame {
			return true
		}
	}
	return false
}

// restoreState decompresses to a temporary capture and writes the state that it was made from.
func restoreState(ctx context.Context, name string, r *container.Reader, w io.Writer, o kvfile.Options) (*kvfile.Restored, error) {
	var res *kvfile.Restored
	in, err := scratchInput(name, func(s io.WriterAt) (err error) {
		res, err = kvfile.Decompress(ctx, r, s, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer in.Close()
	src, err := capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return nil, err
	}
	res.Bytes, err = llamastate.Restore(ctx, src, w)
	return res, err
}

// forState sets what llama.cpp can do without: it attends to what is there, and knows no row bias.
func forState(src *capture.Source, cfg *kvfile.Config) {
	if !llamastate.Has(src) {
		return
	}
	cfg.RowBias = "false"
	if cfg.Levels == nil && cfg.Form == kvfile.FormHot {
		cfg.Levels = []quant.Level{quant.Full, quant.Chunks, quant.Summary}
	}
}

// printState describes a state of llama.cpp.
func (a *app) printState(in *input, f *inspectFlags) error {
	if f.bytes || f.records || f.why || f.spectrum {
		return usagef("--bytes, --records, --why and --spectrum are for .kvist files and captures, %s is a state of llama.cpp",
			in.name)
	}
	st, err := llamastate.Open(in.name, in, in.size, llamastate.Limits{})
	if err != nil {
		return err
	}
	i := st.Info()
	if f.json {
		return printJSON(a.stdout, stateJSON{in.name, "llama-state", in.size, i.Kind.String(), i.Arch, i.Tokens, i.Caches})
	}
	p := &printer{w: a.stdout}
	p.printf("%s: llama.cpp state of %s, %s bytes\n", in.name, i.Kind, count(in.size))
	if i.Arch != "" {
		p.printf("arch    %s\n", i.Arch)
	}
	p.printf("tokens  %s\n\n", count(int64(i.Tokens)))
	t := newTable([]any{"cache", "layers", "cells", "positions", "K", "V", "K width", "V width", "V layout"}, 1, 2, 6, 7)
	for n, c := range i.Caches {
		layout := "by token"
		if c.TransposedV {
			layout = "transposed"
		}
		t.AppendRow([]any{n, c.Layers, count(int64(c.Cells)), fmt.Sprintf("%d to %d", c.First, c.Last), c.KType, c.VType,
			c.KWidth, c.VWidth, layout})
	}
	p.table(t)
	return p.err
}

// stateJSON is what inspect --json prints of a state.
type stateJSON struct {
	File   string                 `json:"file"`
	Type   string                 `json:"type"`
	Bytes  int64                  `json:"bytes"`
	Kind   string                 `json:"kind"`
	Arch   string                 `json:"arch"`
	Tokens int                    `json:"tokens"`
	Caches []llamastate.CacheInfo `json:"caches"`
}
