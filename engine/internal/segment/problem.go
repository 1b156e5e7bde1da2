// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/internal/plan"
	"github.com/kvist-project/kvist/quant"
)

// Problem is a problem for the planner: parts of layers, heads and segments, and what it makes of
// them as groups of items.
type Problem struct {
	b       *Builder
	Parts   []Part
	Planned plan.Problem
	index   map[classKey]uint32
	Solver  *plan.Solver
}

// classKey tells menus apart: blocks of one head, side, kind and number of rows share one.
type classKey struct {
	layer, head int32
	kind        Kind
	side        uint8
	rows        int32
}

func NewProblem(b *Builder) *Problem {
	return &Problem{b: b, index: map[classKey]uint32{}}
}

// add puts a part into the problem.
func (n *Problem) Add(p Part) error {
	g, err := n.group(&p)
	if err != nil {
		return err
	}
	n.Planned.Groups = append(n.Planned.Groups, g)
	n.Parts = append(n.Parts, p)
	return nil
}

// group adds the items of a part and returns its group.
func (n *Problem) group(p *Part) (plan.Group, error) {
	g := plan.Group{Picks: p.picks}
	l := &n.b.Input.Layers[p.Layer]
	to := &n.Planned
	for vi := range p.Variants {
		v := &p.Variants[vi]
		x := plan.Variant{First: len(to.Class), Bytes: v.bytes, Damage: v.Damage}
		for ci := range v.Cells {
			b := &v.Cells[ci]
			if b.Rows() == 0 {
				continue
			}
			for side, damage := range []float64{b.KDamage, b.VDamage}[:1+min(1, l.DimV())] {
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
func (n *Problem) class(l *input.Layer, p *Part, b *Cell, side int) (uint32, error) {
	key := classKey{p.Layer, p.Head, b.Kind, uint8(side), int32(b.Rows())}
	if i, ok := n.index[key]; ok {
		return i, nil
	}
	m, err := n.b.Menu(l, b.Kind)
	if err != nil {
		return 0, fmt.Errorf("kvist/segment: %s: %w", l.Name, err)
	}
	st := &n.b.Stats[p.Layer][p.Head]
	codings, curve, dim := m.K, st.KCurve, l.K.Dim()
	if side == 1 {
		codings, curve, dim = m.V, st.VCurve, l.V.Dim()
	}
	class, err := plan.ClassOf(codings, curve, b.Rows(), dim)
	if err != nil {
		return 0, fmt.Errorf("kvist/segment: %s: %w", l.Name, err)
	}
	i := uint32(len(n.Planned.Classes))
	n.Planned.Classes = append(n.Planned.Classes, class)
	n.index[key] = i
	return i, nil
}

// Scale multiplies the damages of all parts with what factor returns for their layers. Ready follows.
func (n *Problem) Scale(factor func(layer int) float64) {
	to := &n.Planned
	for i := range n.Parts {
		f, g := factor(int(n.Parts[i].Layer)), &to.Groups[i]
		for k := range g.Picks {
			g.Picks[k].Slope *= f
		}
		for v := range g.Variants {
			x := &g.Variants[v]
			x.Damage *= f
			for j := x.First; j < x.First+x.Items; j++ {
				to.Sensitivity[j] *= f
			}
		}
	}
}

// ready prepares the solver, once all parts are there.
func (n *Problem) Ready() (err error) {
	n.Solver, err = plan.NewSolver(&n.Planned)
	return err
}

// stored is a block that a plan stores.
type Stored struct {
	*Cell
	K, V     quant.Coding
	Centered bool // K is coded without its mean
	Item     int  // first item of the block in the problem, -1: it stores no rows
}

// Chosen calls f with every block of a part, as the plan stores it.
func (n *Problem) Chosen(p *plan.Plan, at int, f func(Stored) error) error {
	x := &n.Parts[at]
	l := &n.b.Input.Layers[x.Layer]
	item := n.Planned.Groups[at].Variants[p.Variant[at]].First
	cells := x.Variants[p.Variant[at]].Cells
	for ci := range cells {
		s := Stored{Cell: &cells[ci], Item: -1}
		if s.Rows() > 0 {
			m, err := n.b.Menu(l, s.Kind)
			if err != nil {
				return err
			}
			s.K, s.Item = m.K[p.Choice[item]], item
			s.Centered = s.Cell.Centered && !s.K.Format.Exact()
			item++
			if l.HasV {
				s.V = m.V[p.Choice[item]]
				item++
			}
		}
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}
