// SPDX-License-Identifier: Apache-2.0

package model

// scratch is the working memory of one pass over a chunk.
type scratch struct {
	x, h, proj, qkv, q, k, v, att, gateUp, act, tmp, logits []float32
	angles                                                  []angles // of each of the model's ropes
}

// angles are cosine and sine of a chunk's positions for one rope, its factor included, [n, dim/2].
type angles struct{ cos, sin []float32 }

// resize returns a slice of n arbitrary values, in b's memory if it is large enough.
func resize(b []float32, n int) []float32 {
	if cap(b) < n {
		return make([]float32, n)
	}
	return b[:n]
}

func (s *scratch) size(m *Model, n int) {
	qDim, kDim, vDim := m.Heads*m.HeadDim, m.KVHeads*m.HeadDim, m.KVHeads*m.HeadDimV
	s.x = resize(s.x, n*m.Hidden)
	s.h = resize(s.h, n*m.Hidden)
	s.proj = resize(s.proj, n*m.Hidden)
	s.qkv = resize(s.qkv, n*(qDim+kDim+vDim))
	s.q = resize(s.q, n*qDim)
	s.k = resize(s.k, n*kDim)
	s.v = resize(s.v, n*vDim)
	s.att = resize(s.att, n*m.Heads*m.HeadDimV)
	s.gateUp = resize(s.gateUp, n*2*m.FFN)
	s.act = resize(s.act, n*m.FFN)
	s.tmp = resize(s.tmp, n*max(qDim, vDim, m.FFN))
	if len(s.angles) != len(m.ropes) {
		s.angles = make([]angles, len(m.ropes))
	}
	for i, r := range m.ropes {
		a := &s.angles[i]
		a.cos, a.sin = resize(a.cos, n*r.dim/2), resize(a.sin, n*r.dim/2)
	}
}

// chunk runs tokens through all layers and leaves their residual stream in s.x.
func (m *Model) chunk(s *scratch, tokens []int32, kv KVStore, pos int, observe Observer) error {
	n := len(tokens)
	for i, t := range tokens {
		m.embed.row(int(t), s.x[i*m.Hidden:(i+1)*m.Hidden])
	}
	scale(s.x[:n*m.Hidden], m.embedScale)
	for i, r := range m.ropes {
		r.angles(pos, n, s.angles[i].cos, s.angles[i].sin)
	}
	for l := range m.layers {
		if err := m.attention(s, l, pos, n, kv, observe); err != nil {
			return err
		}
		m.addResidual(s, m.layers[l].attnPostNorm, n)
		if err := m.feedForward(s, &m.layers[l], n); err != nil {
			return err
		}
		m.addResidual(s, m.layers[l].ffnPostNorm, n)
	}
	return nil
}

// attention computes what the attention of a layer adds to the residual stream s.x, in s.proj.
func (m *Model) attention(s *scratch, l, pos, n int, kv KVStore, observe Observer) error {
	w := &m.layers[l]
	m.norm(s.h, s.x, w.attnNorm, n)
	if err := w.qkv.mul(m.par, s.qkv, s.h, s.tmp, n, m.opts.Fast); err != nil {
		return err
	}
	parallel(m.opts.Workers, n, 8, func(lo, hi int) { m.split(s, l, lo, hi) })
	q, k, v := s.q[:n*m.Heads*m.HeadDim], s.k[:n*m.KVHeads*m.HeadDim], s.v[:n*m.KVHeads*m.HeadDimV]
	if observe != nil {
		if err := observe(l, pos, n, q, k, v); err != nil {
			return err
		}
	}
	if err := kv.Append(l, pos, k, v, n); err != nil {
		return err
	}
	att := s.att[:n*m.Heads*m.HeadDimV]
	if err := kv.Attend(l, pos, q, n, att); err != nil {
		return err
	}
	err := w.o.mul(m.par, s.proj, att, n, m.opts.Fast)
	addRows(s.proj[:n*m.Hidden], w.oBias)
	return err
}

// feedForward computes what the feed-forward network of a layer adds to s.x, in s.proj.
func (m *Model) feedForward(s *scratch, w *layerWeights, n int) error {
	m.norm(s.h, s.x, w.ffnNorm, n)
	if err := w.gateUp.mul(m.par, s.gateUp, s.h, s.tmp, n, m.opts.Fast); err != nil {
		return err
	}
	glu := swiglu
	if m.arch.gelu {
		glu = geglu
	}
	parallel(m.opts.Workers, n, 4, func(lo, hi int) {
		glu(s.act[lo*m.FFN:hi*m.FFN], s.gateUp[lo*2*m.FFN:hi*2*m.FFN], hi-lo, m.FFN)
	})
	return w.down.mul(m.par, s.proj, s.act, n, m.opts.Fast)
}

// addResidual adds s.proj to the residual stream, normalised first if the layer has such a norm.
func (m *Model) addResidual(s *scratch, postNorm []float32, n int) {
	if postNorm != nil {
		m.norm(s.proj, s.proj, postNorm, n)
	}
	scale(s.proj[:n*m.Hidden], m.residualScale)
	addTo(s.x[:n*m.Hidden], s.proj)
}

func (m *Model) norm(dst, x, w []float32, n int) {
	parallel(m.opts.Workers, n, 16, func(lo, hi int) {
		rmsNorm(dst[lo*m.Hidden:hi*m.Hidden], x[lo*m.Hidden:hi*m.Hidden], w, hi-lo, m.Eps)
	})
}

// split cuts the rows [lo, hi) of s.qkv into q, k and v, adds their biases, normalises the heads of q
// and k where the layer has such norms, and applies the layer's RoPE.
func (m *Model) split(s *scratch, layer, lo, hi int) {
	w := &m.layers[layer]
	qDim, kDim, vDim := m.Heads*m.HeadDim, m.KVHeads*m.HeadDim, m.KVHeads*m.HeadDimV
	for t := lo; t < hi; t++ {
		row := s.qkv[t*(qDim+kDim+vDim) : (t+1)*(qDim+kDim+vDim)]
		addRows(row, w.qkvBias)
		q, k := s.q[t*qDim:(t+1)*qDim], s.k[t*kDim:(t+1)*kDim]
		copy(q, row)
		copy(k, row[qDim:])
		copy(s.v[t*vDim:(t+1)*vDim], row[qDim+kDim:])
		if w.qNorm != nil {
			rmsNorm(q, q, w.qNorm, m.Heads, m.Eps)
			rmsNorm(k, k, w.kNorm, m.KVHeads, m.Eps)
		}
		i := m.layerRope[layer]
		if i < 0 {
			continue
		}
		r, half := m.ropes[i], m.ropes[i].dim/2
		cos, sin := s.angles[i].cos[t*half:(t+1)*half], s.angles[i].sin[t*half:(t+1)*half]
		for h := 0; h < qDim; h += m.HeadDim {
			r.apply(q[h:h+m.HeadDim], cos, sin)
		}
		for h := 0; h < kDim; h += m.HeadDim {
			r.apply(k[h:h+m.HeadDim], cos, sin)
		}
	}
}

// logits computes the logits of tokens [from, to) of the call. s.x holds the chunk that starts at
// token first. It writes them to dst or, if dst is nil, passes them to on.
func (m *Model) logits(s *scratch, dst []float32, from, to, first int,
	on func(int, []float32) error) error {
	for lo := from; lo < to; lo += logitsBatch {
		n := min(logitsBatch, to-lo)
		out := dst
		if dst == nil {
			s.logits = resize(s.logits, n*m.Vocab)
			out = s.logits
		} else {
			dst = dst[n*m.Vocab:]
		}
		m.norm(s.h, s.x[(lo-first)*m.Hidden:], m.outNorm, n)
		if err := m.output.mul(m.par, out, s.h, n, m.opts.Fast); err != nil {
			return err
		}
		m.capLogits(out[:n*m.Vocab])
		for i := 0; on != nil && i < n; i++ {
			if err := on(lo+i, out[i*m.Vocab:(i+1)*m.Vocab:(i+1)*m.Vocab]); err != nil {
				return err
			}
		}
	}
	return nil
}

// capLogits applies the scale and the soft cap of logits.
func (m *Model) capLogits(x []float32) {
	if m.logitScale == 1 && m.logitSoftcap == 0 {
		return
	}
	parallel(m.opts.Workers, len(x), 1<<14, func(lo, hi int) {
		scale(x[lo:hi], 1/m.logitScale)
		if m.logitSoftcap > 0 {
			softcapped(x[lo:hi], float32(m.logitSoftcap))
		}
	})
}
