// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"slices"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/engine/internal/segment"
	"github.com/kvist-project/kvist/engine/internal/weigh"
)

// hotFile is a file in hot form that is planned and written.
type hotFile struct {
	c         *compressor
	main      *segment.Problem
	firstPart []int // [layers] the first of its parts
}

func newHotFile(c *compressor) *hotFile {
	return &hotFile{c: c, main: segment.NewProblem(c.seg)}
}

// prepare surveys the capture and prices every block, layers side by side.
func (hf *hotFile) prepare(ctx context.Context, weights Weights) error {
	n := len(hf.c.in.Layers)
	hf.c.seg.Stats, hf.c.seg.Weights = make([][]damage.Head, n), make([]weigh.Weights, n)
	parts, uses := make([][]segment.Part, n), make([]weigh.Use, n)
	err := hf.c.eachLayer(ctx, "measuring", hf.c.in.Workers(), func(l *input.Layer) error {
		i := l.Index
		w, err := hf.c.given(weights, l)
		var past [][]float32
		if err == nil && weights == nil {
			w, past, uses[i], err = hf.c.weigher().Weigh(ctx, l, true)
		}
		if err != nil {
			return err
		}
		hf.c.seg.Weights[i] = hf.c.weigher().Level(l, w, past)
		parts[i], err = hf.c.seg.Survey(ctx, l)
		return err
	})
	if err != nil {
		return err
	}
	for i := range parts {
		hf.c.use.Add(uses[i])
		hf.firstPart = append(hf.firstPart, len(hf.main.Parts))
		for _, p := range parts[i] {
			if err := hf.main.Add(p); err != nil {
				return err
			}
		}
		parts[i] = nil
	}
	hf.c.use.Conclude()
	if err := hf.main.Ready(); err != nil {
		return err
	}
	return hf.c.prepareHeader()
}

// eachRecord calls f for every record in file order, with blocks that have no payload yet. Planning
// blocks of a head with the same level and codings become one stored block: their rows cost the same,
// and keeping them apart would cost bits.
func (hf *hotFile) eachRecord(p *plan.Plan, f func(*container.Record) error) error {
	for li := range hf.c.in.Layers {
		l := &hf.c.in.Layers[li]
		for s := range l.Segments() {
			rec := &container.Record{Layer: li, Segment: s, Heads: make([]container.Head, l.Heads)}
			for h := range rec.Heads {
				var err error
				at := hf.firstPart[li] + h*l.Segments() + s
				if rec.Heads[h].Blocks, err = storedBlocks(hf.main, p, at); err != nil {
					return err
				}
			}
			if err := f(rec); err != nil {
				return err
			}
		}
	}
	return nil
}

// storedBlocks returns the blocks of a part as the file stores them.
func storedBlocks(n *segment.Problem, p *plan.Plan, at int) (blocks []container.Block, err error) {
	var runs [][][]uint16 // of each block: the tokens of its rows
	var apart []bool      // of each block
	err = n.Chosen(p, at, func(s segment.Stored) error {
		i := 0
		for i < len(blocks) {
			// Rows that stand apart have scales of another range.
			if o := &blocks[i]; o.Level == s.Level && o.K == s.K && o.V == s.V && o.Centered == s.Centered && apart[i] == (s.Kind == segment.Apart) {
				break
			}
			i++
		}
		if i == len(blocks) {
			apart = append(apart, s.Kind == segment.Apart)
			blocks = append(blocks, container.Block{Level: s.Level, K: s.K, V: s.V, Centered: s.Centered})
			runs = append(runs, nil)
		}
		if s.Counts == nil {
			blocks[i].Tokens = append(blocks[i].Tokens, s.Tokens...)
			return nil
		}
		from := 0
		for _, count := range s.Counts {
			runs[i] = append(runs[i], s.Tokens[from:from+int(count)])
			from += int(count)
		}
		return nil
	})
	for i := range blocks {
		b := &blocks[i]
		// Runs do not overlap, so sorting them by first token sorts all tokens.
		slices.SortFunc(runs[i], func(x, y []uint16) int { return int(x[0]) - int(y[0]) })
		for _, run := range runs[i] {
			b.Tokens = append(b.Tokens, run...)
			b.Counts = append(b.Counts, uint16(len(run)))
		}
		slices.Sort(b.Tokens)
	}
	return blocks, err
}
