// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

type captureFlags struct {
	out, layers, dtype        string
	context, next             int
	oWeight, noQ, json, force bool
	model                     modelFlags
}

func newCapture(a *app) *cobra.Command {
	var f captureFlags
	cmd := &cobra.Command{
		Use:   "capture MODEL TEXT -o OUT.safetensors",
		Short: "Run a model over a text and write its K, V and queries",
		Long: `capture runs a model over the first tokens of a text and writes K, V and the queries of
its layers as a capture for compress. The first --context tokens are the context to
compress. The --next tokens after it are stored separately and serve to measure the damage.

MODEL is a GGUF file (llama, Mistral, SmolLM3, qwen2, qwen3, gemma2, gemma3, phi3, granite), or smollm2:
the SmolLM2-135M-Instruct that make model downloads, or gemma: the Gemma 3 270M of make model-gemma. The
capture says where layers attend in different ways (format kv-capture/2). TEXT is a text file; - is
standard input.

Fields of --json: model, text, output, bytes, tokens, next, layers (numbers), dtype, heads,
kv_heads, head_dim.`,
		Example: `  kvist capture smollm2 book.txt -o cache.safetensors
  kvist capture model.gguf book.txt -o cache.safetensors --context 4096 --layers 0,9,19 --dtype f32
  kvist capture smollm2 - -o - --next 0 < book.txt | kvist compress - -o cache.kvist`,
		Args: cobra.ExactArgs(2),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.capture(cmd.Context(), args[0], args[1], &f)
		}),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "`FILE` to write (required)")
	fl.IntVar(&f.context, "context", 1024, "`tokens` of context")
	fl.IntVar(&f.next, "next", 256, "`tokens` after the context, to measure on; 0: none")
	fl.StringVar(&f.layers, "layers", "all", "`layers` to store: all, or numbers such as 0,9,19")
	fl.StringVar(&f.dtype, "dtype", "f16", "element `type` of K, V and queries: f16, bf16 or f32")
	fl.BoolVar(&f.oWeight, "o-weight", false, "store the output projection of each layer")
	fl.BoolVar(&f.noQ, "no-q", false, "do not store the queries")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	fl.BoolVar(&f.force, "force", false, "replace the output if it exists")
	f.model.add(cmd)
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

// capturedJSON is what --json prints.
type capturedJSON struct {
	Model   string `json:"model"`
	Text    string `json:"text"`
	Output  string `json:"output"`
	Bytes   int64  `json:"bytes"`
	Tokens  int    `json:"tokens"`
	Next    int    `json:"next"`
	Layers  []int  `json:"layers"`
	DType   string `json:"dtype"`
	Heads   int    `json:"heads"`
	KVHeads int    `json:"kv_heads"`
	HeadDim int    `json:"head_dim"`
}

var captureTypes = map[string]quant.DType{"f16": quant.Float16, "bf16": quant.BFloat16,
	"f32": quant.Float32}

func (f *captureFlags) check() (quant.DType, error) {
	dt, ok := captureTypes[f.dtype]
	switch {
	case !ok:
		return dt, oneOf("dtype", f.dtype, dtypeWords)
	case f.context < 1 || f.context > 1<<20:
		return dt, usagef("--context %d: want 1 to %d", f.context, 1<<20)
	case f.next < 0 || f.next > 1<<20:
		return dt, usagef("--next %d: want 0 to %d", f.next, 1<<20)
	}
	return dt, f.model.check()
}

func (a *app) capture(ctx context.Context, name, text string, f *captureFlags) (err error) {
	dt, err := f.check()
	if err != nil {
		return err
	}
	inputs := []string{modelInput(name), text}
	if err := a.checkOutputs(inputs, destination{"-o", f.out, f.force}); err != nil {
		return err
	}
	body, err := a.readText(ctx, text)
	if err != nil {
		return err
	}
	m, err := f.model.open(name, f.context+f.next)
	if err != nil {
		return err
	}
	layers, err := parseLayers(f.layers, m.Layers)
	if err != nil {
		return &usageError{err: fmt.Errorf("--layers: %w", err)}
	}
	tokens, err := m.Tokenizer().Start(body, false)
	if err != nil {
		return err
	}
	if n := f.context + f.next; len(tokens) < n {
		return fmt.Errorf("%s has %d tokens, --context and --next ask for %d: %w", text,
			len(tokens), n,
			quant.ErrShape)
	}
	o := model.CaptureOptions{Next: f.next, Layers: layers, DType: dt, OWeight: f.oWeight,
		NoQ: f.noQ}
	sum := &capturedJSON{Model: m.Name, Text: text, Tokens: f.context, Next: f.next,
		Layers: layers, DType: f.dtype, Heads: m.Heads, KVHeads: m.KVHeads, HeadDim: m.HeadDim}
	if layers == nil {
		for l := range m.Layers {
			sum.Layers = append(sum.Layers, l)
		}
	}
	out, err := a.create(ctx, f.out, f.force)
	if err != nil {
		return err
	}
	sum.Output = out.name
	err = m.Capture(ctx, out, tokens[:f.context+f.next], o)
	if err == nil {
		var st fs.FileInfo
		if st, err = out.Stat(); err == nil {
			sum.Bytes = st.Size()
		}
	}
	out.finish(&err)
	if err != nil {
		return err
	}
	return a.printCapture(sum, f)
}

func (a *app) printCapture(sum *capturedJSON, f *captureFlags) error {
	if f.json {
		return printJSON(a.summaryTo(f.out), sum)
	}
	p := &printer{w: a.summaryTo(f.out)}
	p.printf("%s: %s bytes, %s, %s\n", sum.Output, count(sum.Bytes), sum.Model, sum.DType)
	p.printf("%s tokens of context, %s after it, %d layers, %d heads, %d kv_heads, head_dim %d\n",
		count(int64(sum.Tokens)), count(int64(sum.Next)), len(sum.Layers), sum.Heads, sum.KVHeads,
		sum.HeadDim)
	return p.err
}
