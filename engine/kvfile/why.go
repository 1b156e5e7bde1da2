// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/captured"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/engine/internal/weigh"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Why says of every block of a file why it has its bits: what its tokens are worth, what the planner
// expected of the codings it took and of those it did not, and the price of a byte that decided.
type Why struct {
	// Slope is the price of a byte: the damage that one more would have saved where the budget ran
	// out. 0: every block got the best there is.
	Slope float64 `json:"slope"`
	// Predicted is the planner's sum of damages. Result.Predicted is the error to expect.
	Predicted float64    `json:"predicted"`
	Blocks    []WhyBlock `json:"blocks"` // by layer, head, segment
	Parts     []WhyPart  `json:"parts"`  // those that had a choice of levels
}

// WhyBlock is a planning block: up to 32 rows of one (layer, kv_head, segment).
type WhyBlock struct {
	Layer   int      `json:"layer"` // index into the stored layers
	Head    int      `json:"head"`
	Segment int      `json:"segment"`
	Tokens  []uint16 `json:"tokens"` // offsets in the segment
	Rows    int      `json:"rows"`   // stored for them
	// Kind is "free", "sink" (8 bits at least), "exact" (recent window, NaN), "apart" (rows far longer than
	// others) or "outside" (outside the layer's window: dropped).
	Kind  string `json:"kind"`
	Level string `json:"level"`
	// Weight is the root mean square weight of the tokens; 1 is the head's.
	Weight float64   `json:"weight"`
	Sides  []WhySide `json:"sides"` // K and V, or the rows; none for DROPPED
}

// WhySide is one side of a block, with all codings that it could have had.
type WhySide struct {
	Side    string      `json:"side"`
	Coding  string      `json:"coding"`
	Bytes   int64       `json:"bytes"`
	Damage  float64     `json:"damage"`  // predicted: a share of the energy of attention outputs
	Options []WhyOption `json:"options"` // by bytes
}

// WhyOption is a coding that a block was not given.
type WhyOption struct {
	Coding string  `json:"coding"`
	Bytes  int64   `json:"bytes"`
	Damage float64 `json:"damage"`
	// Price is the damage a byte of the difference is worth here, over Slope: a coarser coding was
	// not taken because its price is above 1, a finer one because it is below. 0 where Slope is 0.
	Price float64 `json:"price"`
}

// WhyPart is a (layer, kv_head, segment) and the ways to merge or drop its tokens that are the best
// for some price of a byte.
type WhyPart struct {
	Layer    int          `json:"layer"`
	Head     int          `json:"head"`
	Segment  int          `json:"segment"`
	Variants []WhyVariant `json:"variants"`
	Chosen   int          `json:"chosen"`
}

// WhyVariant is one of them, its rows coded as the price of a byte has it.
type WhyVariant struct {
	Level  string  `json:"level"` // of the tokens that weigh the least
	Share  float64 `json:"share"` // of the tokens that are no sinks
	Bytes  int64   `json:"bytes"`
	Damage float64 `json:"damage"` // of levels and codings
	Levels float64 `json:"levels"` // of it: of merging and dropping
}

// MadeWith is what a file was made with beside its capture and its config.
type MadeWith struct {
	Weights Weights
	Profile *profile.Profile
}

// Explain plans a file once more from the capture it was made from, and checks that the plan is
// that of the file.
//
// Errors: quant.ErrShape where file, capture, weights and profile do not belong together or give
// another plan (another version of kvist, or a backend that rounds otherwise); those of Compress.
func Explain(ctx context.Context, r *container.Reader, src *capture.Source, be backend.Backend,
	with MadeWith, progress Progress) (*Why, error) {
	cfg, err := ParseConfig(r.Header().Config)
	if err != nil {
		return nil, err
	}
	if cfg.Form == FormArchive {
		return nil, fmt.Errorf("kvist/kvfile: explain: a file in archive form has no blocks to "+
			"explain: %w", quant.ErrUnsupported)
	}
	weights := with.Weights
	if cfg.Weighted != (weights != nil) {
		return nil, fmt.Errorf(
			"kvist/kvfile: explain: file made with weights: %t, weights given: %t: %w", cfg.Weighted,
			weights != nil, quant.ErrShape)
	}
	if want, got := profile.ID(r.Header().Profile), profile.ID(profileID(with.Profile)); want != got {
		return nil, fmt.Errorf("kvist/kvfile: explain: file made with profile %q, given %q: %w",
			ProfileText(want), ProfileText(got), quant.ErrShape)
	}
	// The file's config holds the profile's settings already, and what overrode them.
	cfg.Profile = with.Profile
	c, err := newCompressor(fileOrigin{src}, be, cfg, progress)
	if err != nil {
		return nil, err
	}
	if err := captured.Matches(r.Header(), c.in); err != nil {
		return nil, err
	}
	if err := c.prepare(ctx, weights); err != nil {
		return nil, err
	}
	p, _, err := c.choose(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.samePlan(r, p); err != nil {
		return nil, err
	}
	return c.explain(p)
}

// samePlan checks that the blocks of a file are those of a plan.
func (c *compressor) samePlan(r *container.Reader, p *plan.Plan) error {
	return c.eachRecord(p, func(want *container.Record) error {
		differ := func(what string) error {
			return fmt.Errorf("kvist/kvfile: explain: %s segment %d: the plan made now has other %s "+
				"than the file: %w", c.in.Layers[want.Layer].Name, want.Segment, what, quant.ErrShape)
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

func (c *compressor) explain(p *plan.Plan) (*Why, error) {
	why := &Why{Slope: p.Slope, Predicted: p.Damage, Blocks: []WhyBlock{}, Parts: []WhyPart{}}
	for at := range c.main.Parts {
		x := &c.main.Parts[at]
		err := c.main.Chosen(p, at, func(s segment.Stored) error {
			why.Blocks = append(why.Blocks, c.whyBlock(p, x, s))
			return nil
		})
		if err != nil {
			return nil, err
		}
		if len(x.Variants) > 1 {
			why.Parts = append(why.Parts, c.whyPart(p, at))
		}
	}
	return why, nil
}

// KindOutside is WhyBlock.Kind of tokens outside the window of their layer, which no later query sees.
const KindOutside = "outside"

var kindNames = [...]string{segment.Free: "free", segment.Sink: "sink", segment.Exact: "exact", segment.Apart: "apart",
	segment.Outside: KindOutside}

func (c *compressor) whyBlock(p *plan.Plan, x *segment.Part, s segment.Stored) WhyBlock {
	l := &c.in.Layers[x.Layer]
	b := WhyBlock{Layer: int(x.Layer), Head: int(x.Head), Segment: int(x.Segment), Tokens: s.Tokens,
		Rows: s.Rows(), Kind: kindNames[s.Kind], Level: s.Level.String(), Weight: 1,
		Sides: []WhySide{}}
	first, _ := l.Span(int(x.Segment))
	if w := c.seg.Weights[x.Layer].Now[x.Head]; w != nil {
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
		b.Sides = append(b.Sides, c.whySide(p, l, s, name, side, coding))
	}
	return b
}

func (c *compressor) whySide(p *plan.Plan, l *input.Layer, s segment.Stored, name string, side int,
	coding quant.Coding) WhySide {
	item := s.Item + side
	options := c.main.Planned.Classes[c.main.Planned.Class[item]].Options
	sens := c.main.Planned.Sensitivity[item]
	now := options[p.Choice[item]]
	w := WhySide{Side: name, Coding: coding.String(), Bytes: now.Bytes, Damage: sens * now.Damage}
	m, err := c.seg.Menu(l, s.Kind)
	if err != nil {
		return w // not reached: the menu was good when the plan was made
	}
	menu := m.K
	if side == 1 {
		menu = m.V
	}
	for i, o := range options {
		if i == int(p.Choice[item]) {
			continue
		}
		x := WhyOption{Coding: menu[i].String(), Bytes: o.Bytes, Damage: sens * o.Damage}
		if d := now.Bytes - o.Bytes; d != 0 && p.Slope > 0 {
			x.Price = (x.Damage - w.Damage) / float64(d) / p.Slope
		}
		w.Options = append(w.Options, x)
	}
	slices.SortStableFunc(w.Options, func(a, b WhyOption) int { return int(a.Bytes - b.Bytes) })
	return w
}

// whyPart prices all variants of a part at the plan's price of a byte.
func (c *compressor) whyPart(p *plan.Plan, at int) WhyPart {
	x := &c.main.Parts[at]
	w := WhyPart{Layer: int(x.Layer), Head: int(x.Head), Segment: int(x.Segment),
		Chosen: p.Variant[at]}
	for i, v := range x.Variants {
		bytes, damage := c.main.Solver.VariantAt(at, i, p.Slope)
		w.Variants = append(w.Variants, WhyVariant{Level: v.Spec.Level.String(),
			Share: v.Spec.Share, Bytes: bytes, Damage: damage, Levels: v.Damage})
	}
	return w
}

// prices returns the predicted damage of a block, and the prices of the next codings.
func (b *WhyBlock) Prices() (damage, coarser, finer float64) {
	for _, s := range b.Sides {
		damage += s.Damage
		var below, above *WhyOption
		for i := range s.Options {
			switch o := &s.Options[i]; {
			case o.Bytes < s.Bytes:
				below = o
			case o.Bytes > s.Bytes && above == nil:
				above = o
			}
		}
		if below != nil && (coarser == 0 || below.Price < coarser) {
			coarser = below.Price
		}
		if above != nil {
			finer = max(finer, above.Price)
		}
	}
	return damage, coarser, finer
}
