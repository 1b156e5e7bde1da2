// SPDX-License-Identifier: Apache-2.0

package report

import "github.com/kvist-project/kvist/quant"

// Attention is how the layers of a kind attend.
type Attention struct {
	Layers  []int   `json:"layers"` // the model's numbers
	Window  int64   `json:"window"` // tokens that a query sees, its own included; 0: all
	Scale   float64 `json:"scale"`  // on q.k
	Softcap float64 `json:"softcap"`
	Rope    string  `json:"rope_layout"` // "none", "half" or "interleaved"
	// RotaryDim components turn, by frequencies that follow from Theta unless Scaled says that the model gives
	// them.
	RotaryDim int     `json:"rotary_dim"`
	Theta     float64 `json:"rope_theta"`
	Scaled    bool    `json:"scaled_frequencies"`
}

// AttentionOf returns the kinds of layers of a model, in the order of their first layers; nil where all are
// alike and attend plainly.
func AttentionOf(g quant.Geometry) []Attention {
	g = g.Canonical()
	if g.PerLayer == nil {
		return nil
	}
	kinds, of := g.Kinds()
	all := make([]Attention, len(kinds))
	for l, k := range of {
		if all[k].Layers == nil {
			a := kinds[k]
			all[k] = Attention{Window: a.Window, Scale: g.ScaleOf(l), Softcap: a.Softcap,
				Rope: a.Rope.Layout.String(), RotaryDim: a.Rope.RotaryDim, Theta: a.Rope.Theta,
				Scaled: a.Rope.InvFreq != nil}
		}
		all[k].Layers = append(all[k].Layers, l)
	}
	return all
}
