// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"context"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// rehearse returns the squared error and the squared length of the outputs of one head. ok is false
// where its queries are not finite.
func (c *Builder) Rehearse(ctx context.Context, l *input.Layer, head int,
	slope float64) (e, ref float64, ok bool, err error) {
	up := &input.Uploader{Backend: c.Backend}
	defer up.Free()
	past := l.Past()
	blocks, _, err := input.LoadHead(up, l, head, []int{0, past, l.Tokens}, false)
	if err != nil {
		return 0, 0, false, err
	}
	q, err := c.Price.LastQueries(l, head, past, len(blocks))
	if q == nil || err != nil {
		return 0, 0, false, err
	}
	want := make([]float32, q.Len()*q.Group*q.HeadDimV)
	if err := c.Backend.Attend(ctx, q, blocks, want, nil); err != nil {
		return 0, 0, false, err
	}
	var coded []backend.Block
	for _, b := range blocks {
		if b.Base >= int64(past) {
			coded = append(coded, b)
		}
	}
	n := NewProblem(c)
	view := c.Head(l, head, c.Weights[l.Index].Past[head], past)
	for s := 0; s*l.Segment < past; s++ {
		p, err := c.buildPart(view, s)
		if err != nil {
			return 0, 0, false, err
		}
		if err := n.Add(p); err != nil {
			return 0, 0, false, err
		}
	}
	if err := n.Ready(); err != nil {
		return 0, 0, false, err
	}
	p := n.Solver.AtSlope(slope)
	for s := range n.Parts {
		r, err := c.Read(l, head, s, past)
		if err != nil {
			return 0, 0, false, err
		}
		var cells []Cell
		var codings [][2]quant.Coding
		if err := n.Chosen(p, s, func(b Stored) error {
			cells, codings = append(cells, *b.Cell), append(codings, [2]quant.Coding{b.K, b.V})
			return nil
		}); err != nil {
			return 0, 0, false, err
		}
		got, err := c.codeCells(ctx, up, view, r, cells, codings)
		if err != nil {
			return 0, 0, false, err
		}
		coded = append(coded, got...)
	}
	if e, err = c.attendError(ctx, q, coded, want); err != nil {
		return 0, 0, false, err
	}
	return e, input.Energy(want), true, nil
}
