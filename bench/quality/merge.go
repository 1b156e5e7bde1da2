// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"math"
	"slices"
)

// Merge adds the methods of o that r does not have, for a table that is measured in parts. It adds
// no pairs. Where o has the methods of r and none of its texts, Merge adds the texts.
//
// Errors: quant.ErrShape if model, context, texts or questions differ.
func (r *Results) Merge(o *Results) error {
	const op = "merge results"
	if r.Model != o.Model || r.Context != o.Context || r.Next != o.Next || r.Window != o.Window ||
		r.Chunk != o.Chunk {
		return shapef(op, "%s, %d + %d tokens, and %s, %d + %d tokens", r.Model, r.Context, r.Next,
			o.Model, o.Context, o.Next)
	}
	if r.otherTexts(o) {
		return r.mergeTexts(o)
	}
	if len(r.Exact.Texts) != len(o.Exact.Texts) {
		return shapef(op, "%d and %d texts", len(r.Exact.Texts), len(o.Exact.Texts))
	}
	for i, x := range r.Exact.Texts {
		y := o.Exact.Texts[i]
		// Instruction sets change scores by rounding, other texts by more.
		if x.Text != y.Text || math.Abs(x.Surprisal-y.Surprisal) > 1e-3 {
			return shapef(op, "text %d is %s of %.4f nats in one, %s of %.4f in the other", i, x.Text,
				x.Surprisal, y.Text, y.Surprisal)
		}
	}
	a, b := r.Exact.Retrieval, o.Exact.Retrieval
	if (a == nil) != (b == nil) || a != nil && a.Asked != b.Asked {
		return shapef(op, "other questions in one than in the other")
	}
	for _, m := range o.Methods {
		if r.method(m.Name) == nil {
			r.Methods = append(r.Methods, m)
		}
	}
	for _, p := range o.Pairs {
		if !slices.ContainsFunc(r.Pairs, func(q Pair) bool { return q.A == p.A }) {
			r.Pairs = append(r.Pairs, p)
		}
	}
	r.addCommand(o)
	return nil
}

// otherTexts reports whether o has the methods of r, no questions, and none of its texts.
func (r *Results) otherTexts(o *Results) bool {
	if r.asked() || o.asked() || len(r.Methods) != len(o.Methods) {
		return false
	}
	for i := range r.Methods {
		if r.Methods[i].Name != o.Methods[i].Name {
			return false
		}
	}
	return !slices.ContainsFunc(o.Exact.Texts, func(t NamedScore) bool {
		return slices.ContainsFunc(r.Exact.Texts, func(u NamedScore) bool { return t.Text == u.Text })
	})
}

// mergeTexts adds the texts of o and computes means and pairs anew.
func (r *Results) mergeTexts(o *Results) error {
	r.Exact.Texts = append(r.Exact.Texts, o.Exact.Texts...)
	for i := range r.Methods {
		m, n := &r.Methods[i], &o.Methods[i]
		m.Texts = append(m.Texts, n.Texts...)
		if m.Decoding != nil && n.Decoding != nil {
			m.Decoding.Texts = append(m.Decoding.Texts, n.Decoding.Texts...)
		}
	}
	r.finish()
	pairs := r.Pairs
	r.Pairs = nil
	for _, p := range pairs {
		if err := r.Compare(p.A, p.B); err != nil {
			return err
		}
	}
	r.addCommand(o)
	return nil
}

func (r *Results) addCommand(o *Results) {
	if o.Command != r.Command {
		r.Command += "\n    " + o.Command
	}
}
