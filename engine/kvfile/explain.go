// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// Explain plans a file once more from the capture that it was made from, and checks that the plan is
// that of the file.
//
// Errors: quant.ErrShape where file, capture, weights and profile do not belong together or give
// another plan (another version of kvist, or a backend that rounds otherwise); those of Compress.
func Explain(ctx context.Context, r *container.Reader, src *capture.Source, o Options) (*report.Why, error) {
	cfg, err := ParseConfig(r.Header().Config)
	if err != nil {
		return nil, err
	}
	if cfg.Form == FormArchive {
		return nil, fmt.Errorf("kvist/kvfile: explain: a file in archive form has no blocks to "+
			"explain: %w", quant.ErrUnsupported)
	}
	weights := o.Weights
	if cfg.Weighted != (weights != nil) {
		return nil, fmt.Errorf(
			"kvist/kvfile: explain: file made with weights: %t, weights given: %t: %w", cfg.Weighted,
			weights != nil, quant.ErrShape)
	}
	var given *profile.Profile
	if all := o.profiles(); len(all) > 0 {
		given = all[len(all)-1]
	}
	if want, got := profile.ID(r.Header().Profile), profile.ID(profileID(given)); want != got {
		return nil, fmt.Errorf("kvist/kvfile: explain: file made with profile %q, given %q: %w",
			cold.ProfileText(want), cold.ProfileText(got), quant.ErrShape)
	}
	// The file's config holds the settings of the profile already, and those that replaced them.
	cfg.Profile = given
	be, done, err := o.backend()
	if err != nil {
		return nil, err
	}
	why, err := explain(ctx, r, src, cfg, be, &o)
	return why, errors.Join(err, done())
}

// explain explains a file that was made with cfg.
func explain(ctx context.Context, r *container.Reader, src *capture.Source, cfg Config, be backend.Backend,
	o *Options) (*report.Why, error) {
	c, err := newCompressor(fileOrigin{src}, be, cfg, o.Progress)
	if err != nil {
		return nil, err
	}
	if err := captured.Matches(r.Header(), c.in); err != nil {
		return nil, err
	}
	hf := newHotFile(c)
	if err := hf.prepare(ctx, o.Weights); err != nil {
		return nil, err
	}
	p, _, err := hf.choose(ctx)
	if err != nil {
		return nil, err
	}
	e := &explainer{c: c, hf: hf, p: p}
	if err := e.samePlan(r); err != nil {
		return nil, err
	}
	return e.all()
}

// explainer tells the reasons of a plan.
type explainer struct {
	c  *compressor
	hf *hotFile
	p  *plan.Plan
}

// samePlan checks that the blocks of a file are those of the plan.
func (e *explainer) samePlan(r *container.Reader) error {
	return e.hf.eachRecord(e.p, func(want *container.Record) error {
		differ := func(what string) error {
			return fmt.Errorf("kvist/kvfile: explain: %s segment %d: the plan made now has other %s "+
				"than the file: %w", e.c.in.Layers[want.Layer].Name, want.Segment, what, quant.ErrShape)
		}
		at, ok := r.Find(want.Layer, want.Segment)
		if !ok {
			return differ("records")
		}
		got, err := r.ReadRecord(at)
		if err != nil {
			return err
		}
		if len(got.Heads) != len(want.Heads) {
			return differ("heads")
		}
		for h := range want.Heads {
			if !slices.EqualFunc(want.Heads[h].Blocks, got.Heads[h].Blocks,
				func(a, b container.Block) bool {
					return a.Level == b.Level && a.K == b.K && a.V == b.V &&
						slices.Equal(a.Tokens, b.Tokens) && slices.Equal(a.Counts, b.Counts)
				}) {
				return differ("blocks")
			}
		}
		return nil
	})
}

func (e *explainer) all() (*report.Why, error) {
	why := &report.Why{Slope: e.p.Slope, Predicted: e.p.Damage, Blocks: []report.WhyBlock{}, Parts: []report.WhyPart{}}
	for at := range e.hf.main.Parts {
		x := &e.hf.main.Parts[at]
		err := e.hf.main.Chosen(e.p, at, func(s segment.Stored) error {
			why.Blocks = append(why.Blocks, e.block(x, s))
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(x.Variants) > 1 {
			why.Parts = append(why.Parts, e.part(at))
		}
	}
	return why, nil
}

var kindNames = [...]string{segment.Free: "free", segment.Sink: "sink", segment.Exact: "exact", segment.Apart: "apart",
	segment.Outside: report.KindOutside, segment.Late: "late"}

func (e *explainer) block(x *segment.Part, s segment.Stored) report.WhyBlock {
	l := &e.c.in.Layers[x.Layer]
	b := report.WhyBlock{Layer: int(x.Layer), Head: int(x.Head), Segment: int(x.Segment), Tokens: s.Tokens,
		Rows: s.Rows(), Kind: kindNames[s.Kind], Level: s.Level.String(), Weight: 1,
		Sides: []report.WhySide{}}
	first, _ := l.Span(int(x.Segment))
	if w := e.c.seg.Weights[x.Layer].Now[x.Head]; w != nil {
		part := make([]float32, len(s.Tokens))
		for i, t := range s.Tokens {
			part[i] = w[first+int(t)]
		}
		b.Weight = weigh.RootMeanSquare(part)
	}
	if s.Item < 0 {
		return b
	}
	for side, coding := range []quant.Coding{s.K, s.V}[:1+min(1, l.DimV())] {
		name := [2]string{"K", "V"}[side]
		if !l.HasV {
			name = "rows"
		}
		b.Sides = append(b.Sides, e.side(l, s, name, side, coding))
	}
	return b
}

func (e *explainer) side(l *input.Layer, s segment.Stored, name string, side int,
	coding quant.Coding) report.WhySide {
	item := s.Item + side
	options := e.hf.main.Planned.Classes[e.hf.main.Planned.Class[item]].Options
	sens := e.hf.main.Planned.Sensitivity[item]
	now := options[e.p.Choice[item]]
	w := report.WhySide{Side: name, Coding: coding.String(), Bytes: now.Bytes, Damage: sens * now.Damage}
	m, err := e.c.seg.Menu(l, s.Kind)
	if err != nil {
		return w // not reached: the menu was good when the plan was made
	}
	menu := m.K
	if side == 1 {
		menu = m.V
	}
	for i, o := range options {
		if i == int(e.p.Choice[item]) {
			continue
		}
		x := report.WhyOption{Coding: menu[i].String(), Bytes: o.Bytes, Damage: sens * o.Damage}
		if d := now.Bytes - o.Bytes; d != 0 && e.p.Slope > 0 {
			x.Price = (x.Damage - w.Damage) / float64(d) / e.p.Slope
		}
		w.Options = append(w.Options, x)
	}
	slices.SortStableFunc(w.Options, func(a, b report.WhyOption) int { return int(a.Bytes - b.Bytes) })
	return w
}

// part prices all variants of a part at the plan's price of a byte.
func (e *explainer) part(at int) report.WhyPart {
	x := &e.hf.main.Parts[at]
	w := report.WhyPart{Layer: int(x.Layer), Head: int(x.Head), Segment: int(x.Segment),
		Chosen: e.p.Variant[at]}
	for i, v := range x.Variants {
		bytes, damage := e.hf.main.Solver.VariantAt(at, i, e.p.Slope)
		w.Variants = append(w.Variants, report.WhyVariant{Level: v.Spec.Level.String(),
			Share: v.Spec.Share, Bytes: bytes, Damage: damage, Levels: v.Damage})
	}
	return w
}
