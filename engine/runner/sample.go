// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"container/heap"
	"math"
	"math/rand/v2"

	"github.com/kvist-project/kvist/engine/model"
)

// MostAlternatives bounds Sampling.Alternatives.
const MostAlternatives = 20

// Sampling is how a token is chosen from the model's logits. The zero value is greedy.
type Sampling struct {
	Temperature float64 // 0 to 10; 0: the most likely token
	TopK        int     // only the k most likely tokens; 0: all
	TopP        float64 // only the most likely tokens that together have this probability; 0 or 1: all
	MinP        float64 // only tokens of at least this share of the most likely one's probability; 0 to 1
	Presence    float64 // taken off the logit of a token that the answer has; -2 to 2
	Frequency   float64 // taken off it for each time that it has it; -2 to 2
	Bias        map[int32]float32
	Seed        uint64
	// Alternatives is how many likely tokens are listed with each token, up to MostAlternatives.
	Alternatives int
}

func (s *Sampling) check(vocab int) error {
	in := func(x, lo, hi float64) bool { return x >= lo && x <= hi }
	switch {
	case !in(s.Temperature, 0, 10):
		return shapef("temperature %v, want 0 to 10", s.Temperature)
	case s.TopK < 0:
		return shapef("top_k %d, want 0 or more", s.TopK)
	case !in(s.TopP, 0, 1):
		return shapef("top_p %v, want 0 to 1", s.TopP)
	case !in(s.MinP, 0, 1):
		return shapef("min_p %v, want 0 to 1", s.MinP)
	case !in(s.Presence, -2, 2):
		return shapef("presence penalty %v, want -2 to 2", s.Presence)
	case !in(s.Frequency, -2, 2):
		return shapef("frequency penalty %v, want -2 to 2", s.Frequency)
	case s.Alternatives < 0 || s.Alternatives > MostAlternatives:
		return shapef("%d alternatives, want 0 to %d", s.Alternatives, MostAlternatives)
	}
	for t, b := range s.Bias {
		if t < 0 || int(t) >= vocab || !in(float64(b), -100, 100) {
			return shapef("bias %v of token %d, want -100 to 100 and a token below %d", b, t, vocab)
		}
	}
	return nil
}

// Token is one token of an answer.
type Token struct {
	ID           int32
	LogProb      float64       // of the model, whatever was sampled from it
	Alternatives []Alternative // the most likely tokens, the first the most likely
}

// Alternative is a token that the model might have chosen.
type Alternative struct {
	ID      int32
	LogProb float64
}

// sampler chooses the tokens of one answer.
type sampler struct {
	Sampling
	rng   *rand.Rand
	count map[int32]int // of the tokens of the answer
	work  []float32
	order candidates
}

func newSampler(s Sampling) *sampler {
	return &sampler{Sampling: s, rng: rand.New(rand.NewPCG(s.Seed, 0x6b76697374)), count: map[int32]int{}}
}

// next chooses a token. It may change logits.
func (s *sampler) next(logits []float32) Token {
	sum := model.LogSumExp(logits)
	var t Token
	if s.Alternatives > 0 {
		t.Alternatives = s.alternatives(logits, sum)
	}
	x := logits
	if len(s.Bias) > 0 || s.Presence != 0 || s.Frequency != 0 {
		s.work = append(s.work[:0], logits...)
		x = s.work
		for id, b := range s.Bias {
			x[id] += b
		}
		for id, n := range s.count {
			x[id] -= float32(s.Presence + s.Frequency*float64(n))
		}
	}
	if s.Temperature == 0 {
		t.ID = model.Argmax(x)
	} else {
		t.ID = s.draw(x)
	}
	t.LogProb = float64(logits[t.ID]) - sum
	s.count[t.ID]++
	return t
}

// candidates is a heap of tokens, the most likely on top.
type candidates struct {
	id []int32
	p  []float64
}

func (c *candidates) Len() int { return len(c.id) }
func (c *candidates) Less(i, j int) bool {
	return c.p[i] > c.p[j] || c.p[i] == c.p[j] && c.id[i] < c.id[j]
}
func (c *candidates) Swap(i, j int) {
	c.id[i], c.id[j], c.p[i], c.p[j] = c.id[j], c.id[i], c.p[j], c.p[i]
}
func (c *candidates) Push(any) {}
func (c *candidates) Pop() any {
	n := len(c.id) - 1
	c.id, c.p = c.id[:n], c.p[:n]
	return nil
}

// fill lists all tokens with a function of their logits.
func (c *candidates) fill(x []float32, f func(float32) float64) {
	c.id, c.p = c.id[:0], c.p[:0]
	for i, v := range x {
		c.id, c.p = append(c.id, int32(i)), append(c.p, f(v))
	}
}

func (s *sampler) alternatives(logits []float32, sum float64) (out []Alternative) {
	s.order.fill(logits, func(v float32) float64 { return float64(v) - sum })
	heap.Init(&s.order)
	for range min(s.Alternatives, len(logits)) {
		out = append(out, Alternative{s.order.id[0], s.order.p[0]})
		heap.Pop(&s.order)
	}
	return out
}

// draw samples with the temperature among the tokens that TopK, TopP and MinP leave.
//
// Source: Holtzman et al., The Curious Case of Neural Text Degeneration (2019, arXiv 1904.09751), for TopP.
func (s *sampler) draw(x []float32) int32 {
	top := float64(x[model.Argmax(x)])
	c := &s.order
	c.fill(x, func(v float32) float64 { return math.Exp((float64(v) - top) / s.Temperature) })
	var total float64
	for _, p := range c.p {
		total += p
	}
	if s.TopK == 0 && (s.TopP == 0 || s.TopP == 1) && s.MinP == 0 {
		return pick(c.id, c.p, s.rng.Float64()*total)
	}
	most, share := s.TopK, s.TopP
	if most == 0 {
		most = len(x)
	}
	if share == 0 {
		share = 1
	}
	heap.Init(c)
	var ids []int32
	var ps []float64
	var sum float64
	for len(ids) < most && c.Len() > 0 && (len(ids) == 0 || sum < share*total && c.p[0] >= s.MinP) {
		ids, ps, sum = append(ids, c.id[0]), append(ps, c.p[0]), sum+c.p[0]
		heap.Pop(c)
	}
	return pick(ids, ps, s.rng.Float64()*sum)
}

// pick returns the token in which the running sum of p passes r.
func pick(ids []int32, p []float64, r float64) int32 {
	for i := range ids {
		if r -= p[i]; r < 0 {
			return ids[i]
		}
	}
	for i := len(ids) - 1; i > 0; i-- { // rounding: the last one that has a probability
		if p[i] > 0 {
			return ids[i]
		}
	}
	return ids[0]
}

// forget takes back that the answer has a token.
func (s *sampler) forget(id int32) {
	if s.count[id]--; s.count[id] <= 0 {
		delete(s.count, id)
	}
}
