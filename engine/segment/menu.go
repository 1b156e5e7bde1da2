// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/engine/plan"
	"github.com/kvist-project/kvist/quant"
)

// Menu returns what the planner may choose for a block of a kind.
func (c *Builder) Menu(l *input.Layer, kind Kind) (plan.Menu, error) {
	ek := input.Exact(l.K)
	var ev quant.Coding
	if l.HasV {
		ev = input.Exact(l.V)
	}
	only := func(k, v []quant.Coding) plan.Menu {
		if !l.HasV {
			v = nil
		}
		return plan.Menu{K: k, V: v}
	}
	switch kind {
	case Exact:
		return only([]quant.Coding{ek}, []quant.Coding{ev}), nil
	case Sink:
		u8 := quant.Coding{Format: quant.U8, Scale: quant.ScaleLog8}
		k, v := []quant.Coding{u8, ek}, []quant.Coding{u8, ev}
		if u8.CheckDim(l.K.Dim()) != nil {
			k = k[1:]
		}
		if l.HasV && u8.CheckDim(l.V.Dim()) != nil {
			v = v[1:]
		}
		return only(k, v), nil
	}
	if !l.HasV {
		return menu(c.Menus.Rows, nil, l.K.Dim(), 0, ek)
	}
	m, err := menu(c.Menus.K, c.Menus.V, l.K.Dim(), l.V.Dim(), ek)
	if err == nil && len(c.Menus.V) > 1 {
		m.V[len(m.V)-1] = ev
	}
	return m, err
}

// menu is the planner's menu for blocks of one kind.
func menu(k, v []quant.Coding, dimK, dimV int, exact quant.Coding) (plan.Menu, error) {
	fit := func(m []quant.Coding, dim int) []quant.Coding {
		var ok []quant.Coding
		for _, c := range m {
			if c.CheckDim(dim) == nil {
				ok = append(ok, c)
			}
		}
		// The exact coding tops a menu that leaves a choice.
		if len(m) > 1 {
			ok = append(ok, exact)
		}
		return ok
	}
	var p plan.Menu
	p.K = fit(k, dimK)
	if dimV > 0 {
		p.V = fit(v, dimV)
	}
	if len(p.K) == 0 {
		return p, k[0].CheckDim(dimK)
	}
	if dimV > 0 && len(p.V) == 0 {
		return p, v[0].CheckDim(dimV)
	}
	return p, nil
}
