// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"github.com/kvist-project/kvist/engine/internal/damage"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// center finds the mean of the rows of K. Energies of rows that are coded without it are of what is left.
func center(c *Builder, l *input.Layer, head int, r *Rows, limit int) (err error) {
	r.Mean = &input.Mean{Late: make([]bool, r.n)}
	if !c.Mean || !l.HasV || r.n == 0 {
		return nil
	}
	part, outside := make([]bool, r.n), c.Input.Outside(l, limit)
	for t := range part {
		part[t] = c.kindOf(l, r, t, outside) == Free
	}
	st := stats(c, l, head)
	r.metric = st.Metric
	if r.Mean, err = input.MeanOf(r.K, part, r.metric); err != nil {
		return err
	}
	for t, ok := range part {
		if r.Mean.Stored != nil && (ok && !r.Mean.Late[t] || !r.Mean.Without(r.metric, r.K.Row(t))) {
			r.kEnergy[t] = st.KEnergy(r.K.Row(t), r.Mean)
		} else {
			r.kEnergy[t] = st.KEnergy(r.K.Row(t), nil)
		}
	}
	return nil
}

// stats returns what errors of a head cost; nothing where that is not known yet.
func stats(c *Builder, l *input.Layer, head int) *damage.Head {
	if l.Index < len(c.Stats) && head < len(c.Stats[l.Index]) {
		return &c.Stats[l.Index][head]
	}
	return &damage.Head{}
}

// Center returns rows of K as a block of coded rows holds them: in the metric of the head, and without their mean if
// the block is centered.
func (r *Rows) Center(x quant.Rows, centered bool) (quant.Rows, error) {
	if !centered && r.metric == nil {
		return x, nil
	}
	var mean []byte
	if centered {
		mean = r.Mean.Stored
	}
	out := quant.Rows{Dim: x.Dim, Data: make([]float32, len(x.Data))}
	err := frame.Center(out, x, mean, r.metric)
	return out, err
}
