// SPDX-License-Identifier: Apache-2.0

package model

// loadLayer loads the weights whose names start with p, "blk.7.".
func (m *Model) loadLayer(l *loader, p string) (w layerWeights, err error) {
	if err := m.loadNorms(l, p, &w); err != nil {
		return w, err
	}
	if w.qkv, w.qkvBias, err = m.loadQKV(l, p); err != nil {
		return w, err
	}
	if w.o, err = l.matrix1(p+"attn_output.weight", m.Hidden, m.Heads*m.HeadDimV); err != nil {
		return w, err
	}
	if w.oBias, err = l.optional(p+"attn_output.bias", m.Hidden); err != nil {
		return w, err
	}
	gateUp := []part{{p + "ffn_gate.weight", m.FFN, nil}, {p + "ffn_up.weight", m.FFN, nil}}
	if m.arch.fused {
		gateUp = []part{{p + "ffn_up.weight", 2 * m.FFN, nil}}
	}
	if w.gateUp, err = l.stack(m.Hidden, gateUp...); err != nil {
		return w, err
	}
	w.down, err = l.matrix1(p+"ffn_down.weight", m.Hidden, m.FFN)
	return w, err
}

func (m *Model) loadNorms(l *loader, p string, w *layerWeights) error {
	for _, n := range []struct {
		name string
		dim  int
		has  bool
		dst  *[]float32
	}{
		{"attn_norm", m.Hidden, true, &w.attnNorm}, {"ffn_norm", m.Hidden, true, &w.ffnNorm},
		{"post_attention_norm", m.Hidden, m.arch.postNorm, &w.attnPostNorm},
		{"post_ffw_norm", m.Hidden, m.arch.postNorm, &w.ffnPostNorm},
		{"attn_q_norm", m.HeadDim, m.arch.qkNorm, &w.qNorm},
		{"attn_k_norm", m.HeadDim, m.arch.qkNorm, &w.kNorm},
	} {
		if !n.has {
			continue
		}
		var err error
		if *n.dst, err = l.vector(p+n.name+".weight", n.dim); err != nil {
			return err
		}
	}
	return nil
}

// loadQKV loads q, k and v and their biases; nil if there are none.
func (m *Model) loadQKV(l *loader, p string) (*stack, []float32, error) {
	q, k, v := m.Heads*m.HeadDim, m.KVHeads*m.HeadDim, m.KVHeads*m.HeadDimV
	if m.arch.fused {
		s, err := l.stack(m.Hidden, part{p + "attn_qkv.weight", q + k + v, nil})
		if err != nil {
			return nil, nil, err
		}
		bias, err := l.optional(p+"attn_qkv.bias", q+k+v)
		return s, bias, err
	}
	var place func(int) int
	if m.arch.interleaved {
		place = unpermute(m.HeadDim, m.rotaryDim())
	}
	s, err := l.stack(m.Hidden, part{p + "attn_q.weight", q, place}, part{p + "attn_k.weight", k, place},
		part{p + "attn_v.weight", v, nil})
	if err != nil {
		return nil, nil, err
	}
	var bias []float32
	off := 0
	for _, b := range []part{{p + "attn_q.bias", q, place}, {p + "attn_k.bias", k, place},
		{p + "attn_v.bias", v, nil}} {
		x, err := l.optional(b.name, b.n)
		if err != nil {
			return nil, nil, err
		}
		if x != nil && bias == nil {
			bias = make([]float32, q+k+v)
		}
		for i, val := range x {
			if b.place != nil {
				i = b.place(i)
			}
			bias[off+i] = val
		}
		off += b.n
	}
	return s, bias, nil
}

// rotaryDim is the number of components that the permutation of q and k is about.
func (m *Model) rotaryDim() int {
	if len(m.ropes) == 0 {
		return m.HeadDim
	}
	return m.ropes[0].dim
}

// optional loads a vector; nil if the file does not have it.
func (l *loader) optional(name string, n int) ([]float32, error) {
	if _, ok := l.f.Tensor(name); !ok {
		return nil, nil
	}
	return l.vector(name, n)
}

func (l *loader) matrix1(name string, n, k int) (matrix, error) {
	s, err := l.stack(k, part{name: name, n: n})
	if err != nil {
		return nil, err
	}
	return s.parts[0], nil
}
