// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/report"
)

// whyFlags say what a file was made from and with.
type whyFlags struct {
	why                       bool
	against, weights, profile string
}

func (f *whyFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.why, "why", false, "explain the bits of every block (with --against)")
	fl.StringVar(&f.weights, "weights", "", "weights `FILE` that it was made with, for --why")
	fl.StringVar(&f.profile, "profile", "", "profile `FILE` that it was made with")
}

// explain plans a file once more from the capture it was made from.
func (a *app) explain(ctx context.Context, r *container.Reader, f *whyFlags,
	b backendFlags) (why *report.Why, err error) {
	liftMemory()
	var with kvfile.Options
	p, err := a.openProfile(ctx, f.profile)
	if err != nil {
		return nil, err
	}
	with.Profiles = append(with.Profiles, p)
	src, in, err := a.openCapture(ctx, f.against)
	if err != nil {
		return nil, err
	}
	defer closing(in, &err)
	if f.weights != "" {
		layers := slices.Clone(src.Info().Layers)
		for i := range src.ActTensors() {
			layers = append(layers, i)
		}
		given, file, err := a.openWeights(ctx, f.weights, layers)
		if err != nil {
			return nil, err
		}
		defer closing(file, &err)
		with.Weights = given
	}
	if with.Backend, err = a.openBackend(b); err != nil {
		return nil, err
	}
	defer closing(with.Backend, &err)
	say, clear := a.progress()
	defer clear()
	with.Progress = say
	return kvfile.Explain(ctx, r, src, with)
}

// printWhy prints a line for every block, and one for every choice of levels.
func (r *inspectJSON) printWhy(p *printer) {
	w := r.Why
	p.printf("\nwhy       the last byte saved %.3g of damage; %s predicted by the plan\n\n", w.Slope,
		percent(w.Predicted))
	t := newTable([]any{"layer", "head", "segment", "tokens", "rows", "weight", "level", "side",
		"coding", "bytes", "damage", "coarser", "finer"}, 0, 1, 2, 4, 5, 9, 10, 11, 12)
	for _, b := range w.Blocks {
		layer := r.Kvist.Layers[b.Layer].Number
		first := int64(b.Segment) * int64(r.Kvist.SegmentTokens)
		tokens := fmt.Sprintf("%d of %d-%d", len(b.Tokens), first+int64(b.Tokens[0]),
			first+int64(b.Tokens[len(b.Tokens)-1]))
		if len(b.Sides) == 0 {
			why := ""
			if b.Kind == report.KindOutside {
				why = "outside the layer's window"
			}
			t.AppendRow([]any{layer, b.Head, b.Segment, tokens, b.Rows,
				fmt.Sprintf("%.3f", b.Weight), b.Level, "", why, 0, "", "", ""})
		}
		for _, s := range b.Sides {
			t.AppendRow([]any{layer, b.Head, b.Segment, tokens, b.Rows,
				fmt.Sprintf("%.3f", b.Weight), b.Level, s.Side, s.Coding, count(s.Bytes),
				fmt.Sprintf("%.2e", s.Damage), option(s, -1), option(s, 1)})
		}
	}
	p.table(t)
	if len(w.Parts) == 0 {
		return
	}
	p.printf("\n")
	t = newTable([]any{"layer", "head", "segment", "tokens merged or dropped, bytes, damage; * taken"},
		0, 1, 2)
	for _, x := range w.Parts {
		var list []string
		for i, v := range x.Variants {
			text := fmt.Sprintf("none %s %.2e", count(v.Bytes), v.Damage)
			if v.Share > 0 {
				text = fmt.Sprintf("%.3g %% %s %s %.2e", 100*v.Share, v.Level, count(v.Bytes), v.Damage)
			}
			if i == x.Chosen {
				text += " *"
			}
			list = append(list, text)
		}
		t.AppendRow([]any{r.Kvist.Layers[x.Layer].Number, x.Head, x.Segment,
			strings.Join(list, "; ")})
	}
	p.table(t)
}

// option names the next coding with fewer (-1) or more (1) bytes, and its price.
func option(s report.WhySide, way int) string {
	var text string
	for _, o := range s.Options {
		switch {
		case way < 0 && o.Bytes < s.Bytes: // the last of these is the nearest
		case way > 0 && o.Bytes > s.Bytes:
		default:
			continue
		}
		text = fmt.Sprintf("%s %.2gx", o.Coding, o.Price)
		if way > 0 {
			break
		}
	}
	return text
}
