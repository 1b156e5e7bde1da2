// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Tracker follows the tokens of one KV head of one layer while a cache grows: rows as they are
// appended, attention as queries are answered, weights whenever a segment is to be planned. It
// runs the signals that its weighting uses, and keeps nothing for the others.
//
// State: StateBytes. Append what is committed only: predictors cannot unlearn. Not safe for
// concurrent use; trackers of different heads are independent.
type Tracker struct {
	weighting   Weighting
	tokens      int
	rope        ropeTurn
	relevance   *Relevance
	dim         int
	ropeOf      quant.Rope
	queries     []*queryStats // of each query head, once there are any
	deviation   *deviation
	surprise    *surprise
	habituation *habituation
	decay       *decay
	// Per token, for each signal that is computed as rows come; float32 is enough for a weight.
	values [numSignals][]float32
}

// NewTracker returns a tracker of a head without tokens. dim and dimV are head_dim and
// head_dim_v; rope is undone on K before it is predicted, so that positions do not pass for
// news. Decay's temperature is 1: the weighting's Temperature acts on the product.
//
// Errors: quant.ErrShape.
func NewTracker(p Weighting, dim, dimV int, rope quant.Rope) (*Tracker, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if err := rope.Validate(dim); err != nil {
		return nil, fmt.Errorf("kvist/importance: tracker: %w", err)
	}
	t := &Tracker{weighting: p, rope: newRopeTurn(rope), dim: dim, ropeOf: rope}
	if p.uses(signalExpected) && (dim < 1 || dim > quant.MaxDim) {
		return nil, shapeErr("tracker: head_dim %d, want 1 to %d", dim, quant.MaxDim)
	}
	var errs [5]error
	if p.uses(signalRelevance) {
		t.relevance, errs[0] = NewRelevance(p.Attention)
	}
	if p.uses(signalValueNorm) {
		t.deviation, errs[1] = newDeviation(dimV)
	}
	if p.uses(signalSurprise) {
		t.surprise, errs[2] = newSurprise(dim, surpriseConfig{})
	}
	if p.uses(signalHabituation) {
		t.habituation, errs[3] = newHabituation(dimV, habituationConfig{})
	}
	if p.uses(signalDecay) {
		t.decay, errs[4] = newDecay(p.Decay, 1)
	}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Tokens returns the number of tokens appended.
func (t *Tracker) Tokens() int { return t.tokens }

// Room returns how many queries the next Observe may hold; any number where relevance is off.
func (t *Tracker) Room() int {
	if t.relevance == nil {
		return math.MaxInt32
	}
	return t.relevance.room()
}

// StateBytes returns the bytes that the tracker holds on to.
func (t *Tracker) StateBytes() int64 {
	n := int64(512)
	for _, v := range t.values {
		n += 4 * int64(cap(v))
	}
	if t.relevance != nil {
		n += t.relevance.stateBytes()
	}
	for _, q := range t.queries {
		n += q.StateBytes()
	}
	if t.deviation != nil {
		n += t.deviation.StateBytes()
	}
	if t.surprise != nil {
		n += t.surprise.StateBytes()
	}
	if t.habituation != nil {
		n += t.habituation.StateBytes()
	}
	return n
}

// Clone returns an independent copy, for a fork of the sequence.
func (t *Tracker) Clone() *Tracker {
	c := *t
	for i, v := range t.values {
		c.values[i] = append([]float32(nil), v...)
	}
	if t.relevance != nil {
		c.relevance = t.relevance.clone()
	}
	c.queries = nil
	for _, q := range t.queries {
		c.queries = append(c.queries, q.Clone())
	}
	if t.deviation != nil {
		c.deviation = t.deviation.Clone()
	}
	if t.surprise != nil {
		c.surprise = t.surprise.Clone()
	}
	if t.habituation != nil {
		c.habituation = t.habituation.Clone()
	}
	return &c
}

// Append takes the next tokens: their rows of K (RoPE applied, at the positions that follow) and
// V, and their surprisal in nats, which only a weighting that uses it needs.
//
// k: [tokens, head_dim]; v: [tokens, head_dim_v]; surprisal: [tokens].
//
// Errors: quant.ErrShape; quant.ErrTooLarge beyond the weighting's MaxTokens; *ValueError wrapping
// quant.ErrRange for NaN, infinities and magnitudes above 2^111. Nothing is taken then.
func (t *Tracker) Append(k, v quant.Rows, surprisal []float32) error {
	n := k.Len()
	if v.Len() != n {
		return shapeErr("tracker: %d rows of K, %d of V", n, v.Len())
	}
	if limit := t.weighting.Attention.withDefaults().MaxTokens; n > limit-t.tokens {
		return tooLarge("tracker: %d more tokens after %d, limit %d", n, t.tokens, limit)
	}
	if err := t.checkRows(k, v); err != nil {
		return err
	}
	novelty := make([]float64, n)
	if t.weighting.uses(signalSurprisal) {
		if len(surprisal) != n {
			return shapeErr("tracker: surprisal of %d tokens, want %d", len(surprisal), n)
		}
		for i, s := range surprisal {
			w, err := surprisalWeight(float64(s))
			if err != nil {
				return &ValueError{"surprisal", i, float64(s), "a number", quant.ErrRange}
			}
			novelty[i] = w
		}
		t.keep(signalSurprisal, novelty)
	}
	// What follows was checked above: it takes all or, by a fault of ours, reports.
	if err := t.predict(k, v, novelty); err != nil {
		return err
	}
	t.tokens += n
	return nil
}

func (t *Tracker) checkRows(k, v quant.Rows) error {
	dimK, dimV := 0, 0
	if t.surprise != nil {
		dimK = t.surprise.dim
	}
	if t.deviation != nil {
		dimV = len(t.deviation.mean)
	}
	if t.habituation != nil {
		dimV = t.habituation.dim
		for i, x := range v.Data {
			if x > quant.MaxMagnitude || x < -quant.MaxMagnitude {
				return &ValueError{"v", i / max(v.Dim, 1), float64(x), "magnitudes up to 2^111",
					quant.ErrRange}
			}
		}
	}
	if err := checkRows("k", k, dimK); err != nil {
		return err
	}
	return checkRows("v", v, dimV)
}

// predict runs the signals that look at rows. work: [rows].
func (t *Tracker) predict(k, v quant.Rows, work []float64) error {
	if t.deviation != nil {
		if err := t.deviation.Add(work, v); err != nil {
			return err
		}
		t.keep(signalValueNorm, work)
	}
	if t.surprise != nil {
		if err := t.surprise.Add(work, t.unturned(k)); err != nil {
			return err
		}
		t.keep(signalSurprise, work)
	}
	if t.habituation != nil {
		weights, err := t.habituation.Add(nil, v)
		if err != nil {
			return err
		}
		have := &t.values[signalHabituation]
		for _, w := range weights {
			for range t.habituation.BlockRows() {
				*have = append(*have, float32(w))
			}
		}
	}
	return nil
}

func (t *Tracker) keep(s signal, x []float64) {
	for _, v := range x {
		t.values[s] = append(t.values[s], float32(min(v, math.MaxFloat32)))
	}
}

// unturned returns K without RoPE.
func (t *Tracker) unturned(k quant.Rows) quant.Rows {
	if len(t.rope.freq) == 0 {
		return k
	}
	out := quant.Rows{Dim: k.Dim, Data: make([]float32, len(k.Data))}
	x := make([]float64, k.Dim)
	for r := range k.Len() {
		for i, v := range k.Row(r) {
			x[i] = float64(v)
		}
		t.rope.turn(x, -float64(t.tokens+r))
		for i, v := range x {
			// Turning keeps lengths, so only the very largest values are held here.
			out.Data[r*k.Dim+i] = float32(min(max(v, -math.MaxFloat32), math.MaxFloat32))
		}
	}
	return out
}

// Observe takes what a backend's Relevance returned for a batch of queries; see Relevance.Add.
// Where relevance is off it does nothing.
//
// Errors: those of Relevance.Add.
func (t *Tracker) Observe(q Queries, parts ...RowSums) error {
	if t.relevance == nil {
		return nil
	}
	return t.relevance.Add(q, parts...)
}

// Skip passes over n queries whose attention is not known; see Relevance.Skip. Where relevance is
// off it does nothing.
//
// Errors: those of Relevance.Skip.
func (t *Tracker) Skip(first int64, n int) error {
	if t.relevance == nil {
		return nil
	}
	return t.relevance.Skip(first, n)
}

// ObserveQueries takes the queries themselves, of adjacent positions from first on: one set of
// rows [queries, head_dim] for each query head, RoPE applied. Only a weighting with expected
// attention needs them; otherwise it does nothing.
//
// Errors: quant.ErrShape, also where the number of heads changes; *ValueError wrapping
// quant.ErrRange for NaN and infinities. Nothing is taken then.
func (t *Tracker) ObserveQueries(first int64, q ...quant.Rows) error {
	if !t.weighting.uses(signalExpected) {
		return nil
	}
	if first < 0 || first > quant.MaxTokens || len(q) == 0 || len(q) > quant.MaxHeads ||
		t.queries != nil && len(q) != len(t.queries) {
		return shapeErr("tracker: queries of %d heads from position %d on, %d heads so far", len(q),
			first, len(t.queries))
	}
	for i := range q {
		if err := checkRows("q", q[i], t.dim); err != nil {
			return err
		}
		if q[i].Len() != q[0].Len() {
			return shapeErr("tracker: %d queries of head %d, %d of head 0", q[i].Len(), i, q[0].Len())
		}
	}
	pos := make([]int64, q[0].Len())
	for i := range pos {
		pos[i] = first + int64(i)
	}
	for i := range q {
		if len(t.queries) <= i {
			s, err := newQueryStats(t.dim, t.ropeOf, false)
			if err != nil {
				return err
			}
			t.queries = append(t.queries, s)
		}
		if err := t.queries[i].Add(q[i], pos); err != nil {
			return err
		}
	}
	return nil
}

// Expect takes moments of queries in place of those that ObserveQueries would have made of queries themselves: one for
// each query head. Only a weighting with expected attention needs them; otherwise it does nothing.
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for NaN, infinities and negative variances.
func (t *Tracker) Expect(heads ...QueryMoments) error {
	if !t.weighting.uses(signalExpected) {
		return nil
	}
	var all []*queryStats
	for h, m := range heads {
		if len(m.Mean) != t.dim || len(m.Variance) != t.dim {
			return shapeErr("tracker: moments of head %d of %d and %d components, want %d", h, len(m.Mean), len(m.Variance), t.dim)
		}
		for i := range m.Mean {
			if !finite(m.Mean[i]) || !finite(m.Variance[i]) || m.Variance[i] < 0 {
				return &ValueError{"moments of queries", i, m.Variance[i], "finite, variances from 0 up", quant.ErrRange}
			}
		}
		s, err := newQueryStats(t.dim, t.ropeOf, false)
		if err != nil {
			return err
		}
		s.n = 1 // of which the sum of squares is the variance
		copy(s.mean, m.Mean)
		copy(s.square, m.Variance)
		all = append(all, s)
	}
	if len(all) == 0 || len(all) > quant.MaxHeads {
		return shapeErr("tracker: moments of %d heads", len(all))
	}
	t.queries = all
	return nil
}

// Observed reports whether queries were taken, by Observe or ObserveQueries, or the weighting asks for none.
func (t *Tracker) Observed() bool {
	switch {
	case t.relevance != nil && t.relevance.now.n+t.relevance.last.n > 0,
		t.queries != nil && t.queries[0].Len() > 0:
		return true
	}
	return t.relevance == nil && !t.weighting.uses(signalExpected)
}

// Weights writes the weights of all tokens appended, dst [Tokens], and says how far relevance is
// gathered on few tokens, sinks left out: where it has collapsed, it does not take part in the
// weights, and the caller reports that. Weights of earlier tokens change as later ones and their
// queries come, but never by anything that has not been handed in yet.
//
// k: [Tokens, head_dim], RoPE applied, as the cache holds it now: only a weighting with expected
// attention looks at it. Without queries so far, expected attention does not take part.
//
// Errors: quant.ErrShape, also where queries have seen tokens that were not appended;
// *ValueError wrapping quant.ErrRange for NaN and infinities in k.
func (t *Tracker) Weights(dst []float32, k quant.Rows) (Concentration, error) {
	if len(dst) != t.tokens {
		return Concentration{}, shapeErr("tracker: room for %d tokens, want %d", len(dst), t.tokens)
	}
	var c Concentration
	p, s := t.weighting, t.kept()
	if t.decay != nil {
		s[signalDecay] = make([]float64, t.tokens)
		t.decay.Values(s[signalDecay], 0, int64(t.tokens)-1)
	}
	if t.relevance != nil {
		x := make([]float64, t.tokens)
		if err := t.relevance.Values(x); err != nil {
			return c, err
		}
		var err error
		if c, err = Concentrate(x[min(p.Shape.Sinks, len(x)):]); err != nil {
			return c, err
		}
		if err := Shape(x, p.Shape); err != nil {
			return c, err
		}
		s[signalRelevance] = x
		if c.Collapsed {
			p.Relevance = 0
		}
	}
	switch {
	case !p.uses(signalExpected):
	case t.queries == nil || t.queries[0].Len() == 0:
		p.Expected = 0
	default:
		x := make([]float64, t.tokens)
		if err := t.expected(x, k); err != nil {
			return c, err
		}
		s[signalExpected] = x
	}
	return c, combineInto(dst, &p, &s)
}

// kept returns the signals that were computed as rows came.
func (t *Tracker) kept() (s signals) {
	for i, have := range t.values {
		switch signal(i) {
		case signalRelevance, signalExpected, signalDecay:
			continue
		}
		if !t.weighting.uses(signal(i)) {
			continue
		}
		s[i] = make([]float64, t.tokens)
		for j := range s[i] {
			s[i][j] = 1 // tokens of a block that is not whole yet
			if j < len(have) {
				s[i][j] = float64(have[j])
			}
		}
	}
	return s
}

func (t *Tracker) expected(x []float64, k quant.Rows) error {
	horizon := t.weighting.Horizon
	if horizon == 0 {
		horizon = 256
	}
	s := scores{1 / math.Sqrt(float64(t.dim)), t.weighting.Softcap}
	if t.weighting.Scale > 0 {
		s.scale = t.weighting.Scale
	}
	gone := 0 // in a layer with a window, the next queries see the last rows only
	if w := t.weighting.Attention.Sees; w > 0 {
		gone = int(min(max(0, int64(t.tokens)-w+1), int64(t.tokens)))
		horizon = int(min(int64(horizon), w))
	}
	if len(k.Data) < gone*t.dim {
		return shapeErr("tracker: %d rows of K, want %d", k.Len(), t.tokens)
	}
	clear(x[:gone])
	k.Data = k.Data[gone*t.dim:]
	if err := expectedRelevance(x[gone:], t.queries, k, s, int64(t.tokens), horizon); err != nil {
		return err
	}
	return Shape(x, t.weighting.Shape)
}

// Truncate forgets the tokens from n on. The predictors keep what they learnt from them; start
// from a Clone where that must not be. Tokens of a habituation block that was not whole yet keep
// weight 1 in it, and the next block starts at n.
//
// Errors: quant.ErrShape unless n is in [0, Tokens].
func (t *Tracker) Truncate(n int) error {
	if n < 0 || n > t.tokens {
		return shapeErr("tracker: truncate to %d tokens, want 0 to %d", n, t.tokens)
	}
	if t.relevance != nil {
		t.relevance.truncate(n)
	}
	for i := range t.values {
		t.values[i] = t.values[i][:min(n, len(t.values[i]))]
	}
	if t.habituation != nil {
		t.habituation.discard()
		have := &t.values[signalHabituation]
		for len(*have) < n {
			*have = append(*have, 1)
		}
	}
	t.tokens = n
	return nil
}
