// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Score compares a continuation with the exact one.
type Score struct {
	Bytes        int64   `json:"bytes"`
	BitsPerValue float64 `json:"bits_per_value"`
	KL           float64 `json:"kl"`         // mean over positions, nats
	KLMax        float64 `json:"kl_max"`     // the worst position
	Surprisal    float64 `json:"surprisal"`  // mean of -log q(next token), nats
	Perplexity   float64 `json:"perplexity"` // exp(Surprisal)
	Top1         float64 `json:"top1"`       // share of positions with the same arg max
}

// logSumExp returns log(sum(exp(x))) in float64.
func logSumExp(x []float32) float64 {
	top := float64(x[0])
	for _, v := range x {
		if f := float64(v); f > top {
			top = f
		}
	}
	var s0, s1 float64 // two sums, so that an addition does not wait for the one before
	i := 0
	for ; i+1 < len(x); i += 2 {
		s0 += math.Exp(float64(x[i]) - top)
		s1 += math.Exp(float64(x[i+1]) - top)
	}
	for ; i < len(x); i++ {
		s0 += math.Exp(float64(x[i]) - top)
	}
	return top + math.Log(s0+s1)
}

// reference holds the distributions of the exact run. It keeps the logits, so that an identical run
// has a divergence of exactly 0.
type reference struct {
	vocab  int
	logits []float32 // [positions, vocab]
	prob   []float32 // [positions, vocab]
	lse    []float64 // [positions]
	top    []int32   // [positions]
	next   []int32   // [positions] the true next token, -1 if not known
}

// newReference allocates a reference for the positions of tokens. Each predicts the token after it.
func newReference(vocab int, tokens []int32) *reference {
	n := len(tokens)
	r := &reference{vocab: vocab, logits: make([]float32, n*vocab), prob: make([]float32, n*vocab),
		lse: make([]float64, n), top: make([]int32, n), next: make([]int32, n)}
	for i := range n {
		r.next[i] = -1
		if i+1 < n {
			r.next[i] = tokens[i+1]
		}
	}
	return r
}

// add adds the exact logits of position i.
func (r *reference) add(i int, logits []float32) error {
	if i < 0 || i >= len(r.lse) || len(logits) != r.vocab {
		return shapef("exact run", "row %d of %d with %d logits, want %d", i, len(r.lse),
			len(logits), r.vocab)
	}
	at := i * r.vocab
	copy(r.logits[at:at+r.vocab], logits)
	lse := logSumExp(logits)
	if math.IsNaN(lse) || math.IsInf(lse, 0) {
		return fmt.Errorf("kvist/quality: exact run: position %d: log-sum-exp %v: %w", i, lse,
			quant.ErrRange)
	}
	for j, v := range logits {
		r.prob[at+j] = float32(math.Exp(float64(v) - lse))
	}
	r.lse[i], r.top[i] = lse, model.Argmax(logits)
	return nil
}

// kl returns KL(reference || logits) at position i, and the log-sum-exp of logits:
//
//	sum_j p_j * ((ref_j - lse_ref) - (logits_j - lse))
func (r *reference) kl(i int, logits []float32) (kl, lse float64) {
	lse = logSumExp(logits)
	shift := r.lse[i] - lse
	ref, prob := r.logits[i*r.vocab:(i+1)*r.vocab], r.prob[i*r.vocab:(i+1)*r.vocab]
	logits = logits[:len(ref)]
	prob = prob[:len(ref)]
	for j, v := range ref {
		kl += float64(prob[j]) * (float64(v) - float64(logits[j]) - shift)
	}
	return kl, lse
}

// scorer sums the differences of a run from the reference, position by position.
type scorer struct {
	ref       *reference
	n, agree  int
	kl, klMax float64
	nll       float64
	nllCount  int
	each      func(i int, kl float64) // nil, or called for every position
}

func (s *scorer) add(i int, logits []float32) error {
	if i != s.n || i >= len(s.ref.lse) || len(logits) != s.ref.vocab {
		return shapef("score logits", "row %d with %d logits, want row %d of %d with %d", i,
			len(logits), s.n, len(s.ref.lse), s.ref.vocab)
	}
	kl, lse := s.ref.kl(i, logits)
	if math.IsNaN(kl) || math.IsInf(kl, 0) {
		return fmt.Errorf("kvist/quality: score logits: position %d: divergence %v: %w", i, kl,
			quant.ErrRange)
	}
	// Rounding gives down to -1e-7 if nothing differs.
	kl = max(kl, 0)
	s.n++
	if s.each != nil {
		s.each(i, kl)
	}
	s.kl += kl
	s.klMax = max(s.klMax, kl)
	if model.Argmax(logits) == s.ref.top[i] {
		s.agree++
	}
	if t := s.ref.next[i]; t >= 0 {
		s.nll += lse - float64(logits[t])
		s.nllCount++
	}
	return nil
}

// score returns the means over all positions of the reference.
func (s *scorer) score() (Score, error) {
	if s.n != len(s.ref.lse) || s.n == 0 {
		return Score{}, shapef("score logits", "%d rows, want %d", s.n, len(s.ref.lse))
	}
	n := float64(s.n)
	nll := s.nll / float64(max(1, s.nllCount))
	return Score{KL: s.kl / n, KLMax: s.klMax, Top1: float64(s.agree) / n, Surprisal: nll,
		Perplexity: math.Exp(nll)}, nil
}
