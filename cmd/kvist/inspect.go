// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/report"
)

type inspectFlags struct {
	bytes, records, spectrum, json bool
	whyFlags
	backend backendFlags
}

func newInspect(a *app) *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is in a .kvist file or a capture",
		Long: `inspect describes a profile (model, identity, settings, sensitivities and how they were
made; see kvist tune), a .kvist file (header, config, layers, codings, bytes by section) or a capture
(geometry, tensors, metadata), or a state of llama.cpp (caches, tokens, types). It also shows the effective rank of K and V, the number of directions
that the rows use: the exponential of the entropy of the eigenvalues of their covariance. It takes at
most 4096 rows per head; --spectrum takes all rows and prints a table for every head.

--why explains the bits of every block: the weight of its tokens, the expected damage of its codings
and of the others, and their price relative to the price of a byte. A coarser coding was rejected
because its price is above 1, a finer one because it is below. inspect plans the file again for this:
--against names the capture that the file was made from; give the same --weights and --profile.

--records lists the records of a .kvist file. --bytes dumps every byte of it with its meaning.

Long strings from the file are cut, with a note of the length that was cut: to 256 bytes in a table,
4096 in a line, 65536 with --json.

Fields of --json: file, type (kvist, safetensors, npy, npz, gguf), bytes, spectra (name, side, head,
and rows, nonfinite_rows, dim, effective_rank, top_share, components_90, components_99), and for .kvist:
kvist (as kvist report builds it, without map), records with --records (layer, segment, offset,
bytes), why with --why (slope, predicted, blocks, parts: those of report.Why); for captures:
capture (kind, model, layers, heads, kv_heads, head_dim, head_dim_v, tokens, tokens_next, queries:
layers with queries), tensors (name, dtype, shape, bytes, and stored where they are stored in another
way), metadata; for profiles: file, type, bytes, id, archive_id (what archives name it by), model,
geometry, params,
sections (name, bytes, meta, tensors).`,
		Example: `  kvist inspect cache.kvist
  kvist inspect cache.safetensors --spectrum
  kvist inspect cache.kvist --bytes | less
  kvist inspect cache.kvist --why --against cache.safetensors | less
  kvist inspect embeddings.npy --json
  kvist inspect model.kvprofile`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if f.bytes && (f.json || f.records || f.spectrum || f.why) {
				return usagef("--bytes prints nothing else: leave out --json, --records, --spectrum, --why")
			}
			if f.why != (f.against != "") {
				return usagef("--why needs --against, the capture that the file was made from, and the other way round")
			}
			if err := f.backend.check(); err != nil {
				return err
			}
			return a.inspect(cmd.Context(), args[0], &f)
		}),
	}
	cmd.Flags().BoolVar(&f.bytes, "bytes", false, "dump every byte of a .kvist file or profile, annotated")
	cmd.Flags().BoolVar(&f.records, "records", false, "list the records of a .kvist file")
	cmd.Flags().BoolVar(&f.spectrum, "spectrum", false,
		"measure all rows, print the spectrum of every head")
	f.whyFlags.add(cmd)
	cmd.Flags().StringVar(&f.against, "against", "", "`CAPTURE` that the file was made from, for --why")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object")
	f.backend.add(cmd)
	return cmd
}

// inspectJSON is what --json prints.
type inspectJSON struct {
	File     string            `json:"file"`
	Type     string            `json:"type"`
	Bytes    int64             `json:"bytes"`
	Kvist    *kvistJSON        `json:"kvist,omitempty"`
	Records  []recordJSON      `json:"records,omitempty"`
	Capture  *captureInfoJSON  `json:"capture,omitempty"`
	Tensors  []tensorJSON      `json:"tensors,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Spectra  []headSpectrum    `json:"spectra"`
	Why      *report.Why       `json:"why,omitempty"`

	skipped string // why there is no spectrum of some rows
}

// kvistJSON is a report without its map, which is for drawing.
type kvistJSON struct {
	*report.Report
	Map    *struct{} `json:"map,omitempty"` // nil: hides the one of Report
	Errors *struct{} `json:"errors,omitempty"`
}

type recordJSON struct {
	Layer   int   `json:"layer"`
	Segment int   `json:"segment"`
	Offset  int64 `json:"offset"`
	Bytes   int64 `json:"bytes"`
}

type captureInfoJSON struct {
	Kind       string `json:"kind"`
	Model      string `json:"model"`
	Layers     []int  `json:"layers"`
	Heads      int    `json:"heads"`
	KVHeads    int    `json:"kv_heads"`
	HeadDim    int    `json:"head_dim"`
	HeadDimV   int    `json:"head_dim_v"`
	Tokens     int    `json:"tokens"`
	TokensNext int    `json:"tokens_next"`
	Queries    int    `json:"queries"` // layers with queries
	// Attention is how layers attend, by kind; left out where all are alike and attend plainly.
	Attention []report.Attention `json:"attention,omitempty"`
}

type tensorJSON struct {
	Name   string  `json:"name"`
	DType  string  `json:"dtype"`
	Shape  []int64 `json:"shape"`
	Bytes  int64   `json:"bytes"`
	Stored string  `json:"stored,omitempty"`
}

// containerMagic starts every .kvist file.
const containerMagic = "\x93KVIST"

func (a *app) inspect(ctx context.Context, name string, f *inspectFlags) (err error) {
	in, err := a.openInput(ctx, name)
	if err != nil {
		return err
	}
	defer closing(in, &err)
	magic := make([]byte, len(containerMagic))
	if _, err := in.ReadAt(magic, 0); err != nil && err != io.EOF {
		return fmt.Errorf("read %s: %w", in.name, err)
	}
	res := &inspectJSON{File: in.name, Bytes: in.size, Spectra: []headSpectrum{}}
	if isProfile(in) {
		return a.inspectProfile(in, f)
	}
	if isState(in) {
		return a.printState(in, f)
	}
	if string(magic) == containerMagic || strings.EqualFold(filepath.Ext(name), ".kvist") {
		err = a.inspectContainer(ctx, in, f, res)
	} else {
		if f.bytes || f.records || f.why {
			return usagef("--bytes, --records and --why are for .kvist files, %s is a capture", in.name)
		}
		err = a.inspectCapture(ctx, in, f, res)
	}
	if err != nil || f.bytes {
		return err
	}
	if f.json {
		return printJSON(a.stdout, res)
	}
	p := &printer{w: a.stdout}
	res.print(p, f)
	return p.err
}

func (a *app) inspectContainer(ctx context.Context, in *input, f *inspectFlags,
	res *inspectJSON) error {
	r, err := openKvist(in)
	if err != nil {
		return err
	}
	if f.bytes {
		return container.Dump(a.stdout, r, container.DumpOptions{})
	}
	res.Type = "kvist"
	rep, err := report.Build(ctx, r, nil)
	if err != nil {
		return err
	}
	rep.File = in.name
	res.Kvist = &kvistJSON{Report: rep}
	if f.records {
		for _, x := range r.Records() {
			res.Records = append(res.Records, recordJSON{x.Layer, x.Segment, x.Offset, x.Length})
		}
	}
	if f.why {
		if res.Why, err = a.explain(ctx, r, &f.whyFlags, f.backend); err != nil {
			return err
		}
	}
	say, clear := a.progress()
	defer clear()
	return containerSpectra(ctx, r, rowLimit(f), res, say)
}

func (a *app) inspectCapture(ctx context.Context, in *input, f *inspectFlags,
	res *inspectJSON) error {
	src, err := capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return err
	}
	in.owns(src)
	g := src.Info().Geometry
	res.Type = src.Info().Format
	kind := "activations"
	if src.Info().KV {
		kind = "kv"
	}
	res.Capture = &captureInfoJSON{Kind: kind, Model: src.Info().Model,
		Layers: append([]int{}, src.Info().Layers...), Heads: g.Heads, KVHeads: g.KVHeads,
		HeadDim:  g.HeadDim,
		HeadDimV: g.HeadDimV, Tokens: src.Info().Tokens, TokensNext: src.Info().TokensNext,
		Attention: report.AttentionOf(g)}
	for _, n := range src.Info().Layers {
		if _, ok := src.KV(n, capture.Q); ok {
			res.Capture.Queries++
		}
	}
	for _, t := range src.Tensors() {
		res.Tensors = append(res.Tensors, tensorJSON{t.Name, t.DTypeName, append([]int64{},
			t.Shape...), t.Bytes, t.Stored})
	}
	res.Metadata = src.Info().Metadata
	say, clear := a.progress()
	defer clear()
	return captureSpectra(ctx, src, rowLimit(f), res, say)
}

func rowLimit(f *inspectFlags) int64 {
	if f.spectrum {
		return 0
	}
	return sampleRows
}

func (r *inspectJSON) print(p *printer, f *inspectFlags) {
	if r.Kvist != nil {
		r.printContainer(p)
	} else {
		r.printCapture(p)
	}
	if f.records {
		p.printf("\n")
		t := newTable([]any{"record", "layer", "segment", "offset", "bytes"}, 0, 1, 2, 3, 4)
		for i, x := range r.Records {
			t.AppendRow([]any{i, r.Kvist.Layers[x.Layer].Number, x.Segment, count(x.Offset),
				count(x.Bytes)})
		}
		p.table(t)
	}
	if r.Why != nil {
		r.printWhy(p)
		return
	}
	r.printSpectra(p, f.spectrum)
}

func (r *inspectJSON) printContainer(p *printer) {
	k := r.Kvist
	p.printf("%s: %s %s file, %s bytes, %.4g bits/value, %s\n", r.File, k.Kind, k.Version,
		count(k.Bytes), k.BitsPerValue, sizeText(k.Bytes, k.OriginalBytes, k.SourceBytes))
	if k.Kind == "cache" {
		if k.Model != "" {
			p.printf("model     %s\n", k.Model)
		}
		p.printf("shape     %d layers stored, %d heads, %d kv_heads, head_dim %d, head_dim_v %d\n",
			len(k.Layers),
			k.Heads, k.KVHeads, k.HeadDim, k.HeadDimV)
		printAttention(p, k.Attention, "          ")
		p.printf("tokens    %s from position %s, %d sinks, window %d\n", count(k.Tokens),
			count(k.FirstPosition),
			k.Sinks, k.Window)
		if k.SeenValues < k.Values {
			p.printf("seen      %s of values: the others lie outside their layers' windows; %.4g bits for each seen value\n",
				share(k.SeenValues, k.Values), k.BitsPerSeen)
		}
	} else {
		p.printf("rows      %s in %d tensors\n", count(k.Tokens), len(k.Layers))
	}
	p.printf("segments  of %s tokens\nconfig    %s\n\n", count(int64(k.SegmentTokens)), k.Config)
	if k.Profile != "" {
		p.printf("profile   %.16s\n\n", k.Profile)
	}
	t := newTable([]any{"layer", "tokens", "dim", "segments", "bytes", "K bits", "V bits"}, 1, 2, 3,
		4, 5, 6)
	if k.Kind != "cache" {
		t = newTable([]any{"tensor", "rows", "dim", "segments", "bytes", "bits"}, 1, 2, 3, 4, 5)
	}
	for _, l := range k.Layers {
		row := []any{title(l.Name), count(l.Tokens), l.Dim, l.Segments, count(l.Bytes),
			fmt.Sprintf("%.3f", l.KBits)}
		if k.Kind == "cache" {
			row = append(row, fmt.Sprintf("%.3f", l.VBits))
		}
		t.AppendRow(row)
	}
	p.table(t)
	p.printf("\n")
	t = newTable([]any{"side", "level", "coding", "rows", "values", "bytes", "bits/value"}, 3, 4, 5,
		6)
	for _, c := range k.Codings {
		t.AppendRow([]any{c.Side, c.Level, c.Coding, count(c.Rows), count(c.Values), count(c.Bytes),
			fmt.Sprintf("%.3f", c.BitsPerValue)})
	}
	p.table(t)
	p.printf("\n")
	t = newTable([]any{"section", "bytes", "share"}, 1, 2)
	for _, s := range k.Sections {
		t.AppendRow([]any{s.Name, count(s.Bytes), share(s.Bytes, k.Bytes)})
	}
	p.table(t)
}

func (r *inspectJSON) printCapture(p *printer) {
	c := r.Capture
	p.printf("%s: %s, %s, %s bytes\n", r.File, r.Type, c.Kind, count(r.Bytes))
	if c.Kind == "kv" {
		p.printf("model   %s\n", c.Model)
		p.printf("shape   layers %s, %d heads, %d kv_heads, head_dim %d, head_dim_v %d\n",
			strings.Trim(fmt.Sprint(c.Layers), "[]"), c.Heads, c.KVHeads, c.HeadDim, c.HeadDimV)
		printAttention(p, c.Attention, "        ")
		p.printf("tokens  %s, and %s after them\n", count(int64(c.Tokens)),
			count(int64(c.TokensNext)))
		queries := fmt.Sprintf("of %d of %d layers", c.Queries, len(c.Layers))
		if c.Queries < len(c.Layers) {
			queries += "; in the others compress lets K stand in for them, and all tokens of a head weigh the same"
		}
		p.printf("queries %s\n", queries)
	}
	p.printf("\n")
	t := newTable([]any{"tensor", "dtype", "shape", "bytes"}, 3)
	for _, x := range r.Tensors {
		name := x.Name
		if name == "" {
			name = "(the array)"
		}
		dtype := x.DType
		if x.Stored != "" {
			dtype += " (" + x.Stored + ")"
		}
		t.AppendRow([]any{name, dtype, fmt.Sprint(x.Shape), count(x.Bytes)})
	}
	p.table(t)
	if len(r.Metadata) > 0 {
		p.printf("\n")
		t = newTable([]any{"metadata", "value"})
		for _, k := range slices.Sorted(maps.Keys(r.Metadata)) {
			t.AppendRow([]any{k, r.Metadata[k]})
		}
		p.table(t)
	}
}
