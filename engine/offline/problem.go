// SPDX-License-Identifier: Apache-2.0

package offline

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// planning is a problem for the planner: parts of layers, heads and segments, and what it makes of
// them as groups of items.
type planning struct {
	b       *builder
	parts   []part
	problem plan.Problem
	index   map[classKey]uint32
	solver  *plan.Solver
}

// classKey tells menus apart: blocks of one head, side, kind and number of rows share one.
type classKey struct {
	layer, head int32
	kind        cellKind
	side        uint8
	rows        int32
}

func newPlanning(b *builder) *planning {
	return &planning{b: b, index: map[classKey]uint32{}}
}

// add puts a part into the problem.
func (n *planning) add(p part) error {
	g, err := n.group(&p)
	if err != nil {
		return err
	}
	n.problem.Groups = append(n.problem.Groups, g)
	n.parts = append(n.parts, p)
	return nil
}

// group adds the items of a part and returns its group.
func (n *planning) group(p *part) (plan.Group, error) {
	g := plan.Group{Picks: p.picks}
	l := &n.b.in.Layers[p.layer]
	to := &n.problem
	for vi := range p.variants {
		v := &p.variants[vi]
		x := plan.Variant{First: len(to.Class), Bytes: v.bytes, Damage: v.damage}
		for ci := range v.cells {
			b := &v.cells[ci]
			if b.rows() == 0 {
				continue
			}
			for side, damage := range []float64{b.kDamage, b.vDamage}[:1+min(1, l.DimV())] {
				class, err := n.class(l, p, b, side)
				if err != nil {
					return g, err
				}
				to.Class = append(to.Class, class)
				to.Sensitivity = append(to.Sensitivity, damage)
			}
		}
		x.Items = len(to.Class) - x.First
		g.Variants = append(g.Variants, x)
	}
	return g, nil
}

// class returns the menu of one side of a block.
func (n *planning) class(l *input.Layer, p *part, b *cell, side int) (uint32, error) {
	key := classKey{p.layer, p.head, b.kind, uint8(side), int32(b.rows())}
	if i, ok := n.index[key]; ok {
		return i, nil
	}
	m, err := n.b.menuOf(l, b.kind)
	if err != nil {
		return 0, fmt.Errorf("kvist/offline: %s: %w", l.Name, err)
	}
	st := &n.b.stats[p.layer][p.head]
	codings, curve, dim := m.K, st.KCurve, l.K.Dim()
	if side == 1 {
		codings, curve, dim = m.V, st.VCurve, l.V.Dim()
	}
	class, err := plan.ClassOf(codings, curve, b.rows(), dim)
	if err != nil {
		return 0, fmt.Errorf("kvist/offline: %s: %w", l.Name, err)
	}
	i := uint32(len(n.problem.Classes))
	n.problem.Classes = append(n.problem.Classes, class)
	n.index[key] = i
	return i, nil
}

// ready prepares the solver, once all parts are there.
func (n *planning) ready() (err error) {
	n.solver, err = plan.NewSolver(&n.problem)
	return err
}

// stored is a block that a plan stores.
type stored struct {
	*cell
	k, v quant.Coding
	item int // first item of the block in the problem, -1: it stores no rows
}

// chosen calls f with every block of a part as a plan stores it.
func (n *planning) chosen(p *plan.Plan, at int, f func(stored) error) error {
	x := &n.parts[at]
	l := &n.b.in.Layers[x.layer]
	item := n.problem.Groups[at].Variants[p.Variant[at]].First
	cells := x.variants[p.Variant[at]].cells
	for ci := range cells {
		s := stored{cell: &cells[ci], item: -1}
		if s.rows() > 0 {
			m, err := n.b.menuOf(l, s.kind)
			if err != nil {
				return err
			}
			s.k, s.item = m.K[p.Choice[item]], item
			item++
			if l.HasV {
				s.v = m.V[p.Choice[item]]
				item++
			}
		}
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}
