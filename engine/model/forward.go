// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// LogitsMode selects the tokens of a call to Forward whose logits are computed.
type LogitsMode uint8

// The modes. The output matrix is a fifth of a small model, so unused logits cost time.
const (
	LogitsLast  LogitsMode = iota // the last token
	LogitsNone                    // no token: to fill a cache
	LogitsAll                     // every token
	LogitsRange                   // tokens [From, To) of this call
)

// An Observer is called with q, k and v of a chunk in one layer, RoPE applied, before they enter
// the cache: q [n, heads, head_dim], k [n, kv_heads, head_dim], v [n, kv_heads, head_dim_v], the
// first row at position pos. The slices are valid only during the call. An error ends the pass.
type Observer func(layer, pos, n int, q, k, v []float32) error

// ForwardOptions are the options of one pass. The zero value computes the logits of the last
// token.
type ForwardOptions struct {
	Logits   LogitsMode
	From, To int // for LogitsRange: tokens of this call, half-open

	// OnLogits, if set, is called with the index and the logits, [vocab], of each token in order.
	// Forward then returns no logits, so its memory is bounded. The slice is valid only during the
	// call. An error ends the pass.
	OnLogits func(i int, logits []float32) error

	// Observer, if set, is called once per chunk and layer, in order.
	Observer Observer

	// Chunk is the number of tokens that go through the layers at once. Default 256. It changes
	// results by rounding only.
	Chunk int
}

const (
	defaultChunk   = 256
	maxChunk       = 4096
	logitsBatch    = 64      // rows of logits computed at once: 12.6 MB for a vocabulary of 49152
	maxLogitValues = 1 << 27 // of returned logits, 512 MiB
)

// Forward runs the model over tokens, the first of which has position pos. It returns the logits
// that o selects, [rows, vocab]. kv must hold the positions before pos; Forward appends to it.
//
// Errors: ErrShape for no tokens, a token outside the vocabulary, a range outside the tokens;
// ErrTooLarge for positions beyond the model's context or too many logits to return;
// those of kv, OnLogits and Observer. After an error kv may hold a part of a chunk: truncate it.
func (m *Model) Forward(tokens []int32, kv KVStore, pos int, o ForwardOptions) ([]float32, error) {
	from, to, err := m.check(tokens, pos, &o)
	if err != nil {
		return nil, err
	}
	var out []float32
	if o.OnLogits == nil && to > from {
		if (to-from)*m.Vocab > maxLogitValues {
			return nil, fmt.Errorf("kvist/model: forward: %d rows of %d logits at once, "+
				"the limit is %d values (use OnLogits): %w",
				to-from, m.Vocab, maxLogitValues, quant.ErrTooLarge)
		}
		out = make([]float32, (to-from)*m.Vocab)
	}
	s := m.scratch.Get().(*scratch)
	defer m.scratch.Put(s)
	s.size(m, min(o.Chunk, len(tokens)))
	for lo := 0; lo < len(tokens); lo += o.Chunk {
		hi := min(lo+o.Chunk, len(tokens))
		if err := m.chunk(s, tokens[lo:hi], kv, pos+lo, o.Observer); err != nil {
			return nil, fmt.Errorf("kvist/model: forward positions [%d, %d): %w", pos+lo, pos+hi, err)
		}
		a, b := max(lo, from), min(hi, to)
		if a >= b {
			continue
		}
		var dst []float32
		if out != nil {
			dst = out[(a-from)*m.Vocab : (b-from)*m.Vocab]
		}
		if err := m.logits(s, dst, a, b, lo, o.OnLogits); err != nil {
			return nil, fmt.Errorf("kvist/model: forward: logits: %w", err)
		}
	}
	return out, nil
}

// ForwardBatch runs the next tokens of many sequences through the model at once: one token of each
// that answers, chunks of prompts of those that begin. It calls on with the number of the part and the
// logits, [vocab], of the last token of every part that asks for them, in order; the slice is valid only
// during the call. A batch has at most 4096 tokens.
//
// A token's result depends on the other parts by rounding at most.
//
// Errors: ErrShape for no parts, a part without tokens, too many tokens, or a token outside the vocabulary;
// ErrTooLarge for positions beyond the model's context; those of kv and on.
func (m *Model) ForwardBatch(parts []Part, kv BatchKV, on func(part int, logits []float32) error) error {
	n, err := checkBatch(m, parts)
	if err != nil {
		return err
	}
	s := m.scratch.Get().(*scratch)
	defer m.scratch.Put(s)
	s.size(m, n)
	at := 0
	for _, p := range parts {
		m.place(s, p.Tokens, p.Pos, at)
		at += len(p.Tokens)
	}
	if err := m.run(s, n, batchStore{kv}, 0, nil); err != nil {
		return fmt.Errorf("kvist/model: forward batch of %d parts, %d tokens: %w", len(parts), n, err)
	}
	// The rows that need logits move to the front: one after the other, never over one that is still needed.
	var wanted []int
	at = 0
	for i, p := range parts {
		at += len(p.Tokens)
		if p.Logits {
			copy(s.x[len(wanted)*m.Hidden:(len(wanted)+1)*m.Hidden], s.x[(at-1)*m.Hidden:at*m.Hidden])
			wanted = append(wanted, i)
		}
	}
	err = m.logits(s, nil, 0, len(wanted), 0, func(i int, logits []float32) error { return on(wanted[i], logits) })
	if err != nil {
		return fmt.Errorf("kvist/model: forward batch: logits: %w", err)
	}
	return nil
}

func (m *Model) check(tokens []int32, pos int, o *ForwardOptions) (from, to int, err error) {
	const op = "forward"
	n := len(tokens)
	if n == 0 {
		return 0, 0, shapef(op, "no tokens")
	}
	if pos < 0 {
		return 0, 0, shapef(op, "position %d, want 0 or more", pos)
	}
	if n > m.Context || pos > m.Context-n {
		return 0, 0, fmt.Errorf("kvist/model: forward: positions [%d, %d), the model's context is %d: %w",
			pos, pos+n, m.Context, quant.ErrTooLarge)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= m.Vocab {
			return 0, 0, shapef(op, "token %d is %d, want 0 to %d", i, t, m.Vocab-1)
		}
	}
	if o.Chunk == 0 {
		o.Chunk = defaultChunk
	}
	if o.Chunk < 1 || o.Chunk > maxChunk {
		return 0, 0, shapef(op, "chunk of %d tokens, want 1 to %d", o.Chunk, maxChunk)
	}
	switch o.Logits {
	case LogitsLast:
		return n - 1, n, nil
	case LogitsNone:
		return 0, 0, nil
	case LogitsAll:
		return 0, n, nil
	case LogitsRange:
		if o.From < 0 || o.To > n || o.From > o.To {
			return 0, 0, shapef(op, "logits of [%d, %d), want within [0, %d)", o.From, o.To, n)
		}
		return o.From, o.To, nil
	}
	return 0, 0, shapef(op, "logits mode %d is not known", o.Logits)
}

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
	m.place(s, tokens, pos, 0)
	return m.run(s, len(tokens), kv, pos, observe)
}

// place puts the embeddings and the angles of consecutive tokens at row at of a chunk.
func (m *Model) place(s *scratch, tokens []int32, pos, at int) {
	x := s.x[at*m.Hidden : (at+len(tokens))*m.Hidden]
	for i, t := range tokens {
		m.embed.row(int(t), x[i*m.Hidden:(i+1)*m.Hidden])
	}
	scale(x, m.embedScale)
	for i, r := range m.ropes {
		half := at * r.dim / 2
		r.angles(pos, len(tokens), s.angles[i].cos[half:], s.angles[i].sin[half:])
	}
}

// run takes the n tokens that place has put into s through all layers.
func (m *Model) run(s *scratch, n int, kv KVStore, pos int, observe Observer) error {
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
