// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"math"
	"math/rand/v2"

	"github.com/kvist-project/kvist/quant"
)

// syntheticOptions are the shape of a synthetic context. A field that is 0 has its default.
type syntheticOptions struct {
	Layers  int // default 2
	KVHeads int // default 2
	GQA     int // query heads per KV head, default 8
	HeadDim int // a multiple of 8, default 128
	Tokens  int // of the context, at least 32, default 1024
	Next    int // tokens after it, default 128
	Seed    uint64
}

func (o *syntheticOptions) defaults() error {
	for _, f := range []struct {
		name        string
		v           *int
		def         int
		least, most int
	}{{"layers", &o.Layers, 2, 1, 1024}, {"kv_heads", &o.KVHeads, 2, 1, 256},
		{"gqa ratio", &o.GQA, 8, 1, 64}, {"head_dim", &o.HeadDim, 128, 8, 1024},
		{"tokens", &o.Tokens, 1024, 32, 1 << 20}, {"later tokens", &o.Next, 128, 1, 1 << 20}} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < f.least || *f.v > f.most {
			return shapef("synthetic context", "%s %d, want %d to %d",
				f.name, *f.v, f.least, f.most)
		}
	}
	if o.HeadDim%8 != 0 {
		return shapef("synthetic context", "head_dim %d, want a multiple of 8", o.HeadDim)
	}
	return nil
}

// The synthetic family. Magnitudes are those seen in caches of models of 7 to 70 billion
// parameters with head_dim 128: scores have a standard deviation of 1 to 3 nats, a few channels
// of K are ten times the others, sinks take a large part of the attention and give next to no
// output.
const (
	synTheta     = 500000 // RoPE base of Llama 3
	synTopics    = 12     // rank of the slow, shared part of K and Q
	synTopicStay = 0.985  // correlation of topics from token to token: about 65 tokens
	synSentence  = 48     // mean tokens until a topic jumps
	synMassive   = 4      // massive channels of K
	synMassiveAt = 11.0   // their bias
	synBias      = 1.0    // standard deviation of the bias of the other channels
	synRecall    = 0.35   // share of queries that look for one earlier token
	synTail      = 3.0    // degrees of freedom of V: Student's t, variance but no fourth moment
	synSinks     = 2
)

// synthetic makes a second family of test data, beside captures of real models, from a seed: by default
// head_dim 128 and eight query heads to a KV head.
//
// A token has a topic (a slow random walk in 12 dims that jumps at sentence ends) and its own content.
// Without RoPE,
//
//	k = bias + massive channels + W topic + content
//	q = bias' + W' topic + noise, and for a third of the queries the content of an earlier token
//
// So attention is local, because topics drift and RoPE fades, and global, because queries recall tokens.
// How often a token is recalled follows Zipf's law; a fifth of the recalls after the context are of
// tokens that were never recalled before. The massive channels are slow RoPE pairs and hardly vary. The
// first two tokens are sinks: K along the mean query, V of a twentieth of the length. V is W topic
// plus noise of Student's t with 3 degrees of freedom, under channel scales that differ by a
// factor of three. Everything is rounded to binary16, as captures are.
//
// Errors: quant.ErrShape.
func synthetic(o syntheticOptions) (*Context, *nextRows, error) {
	if err := o.defaults(); err != nil {
		return nil, nil, err
	}
	c := &Context{Tokens: make([]int32, o.Tokens), Geometry: quant.Geometry{
		Layers: o.Layers, Heads: o.KVHeads * o.GQA, KVHeads: o.KVHeads,
		HeadDim: o.HeadDim, HeadDimV: o.HeadDim,
		Rope: quant.Rope{Layout: quant.RopeHalf, RotaryDim: o.HeadDim, Theta: synTheta},
	}}
	next := &nextRows{}
	text := newSynText(o, rand.New(rand.NewPCG(o.Seed, 0)))
	for t := range c.Tokens {
		c.Tokens[t] = int32(t)
	}
	for l := range o.Layers {
		rng := rand.New(rand.NewPCG(o.Seed, uint64(l)+1))
		var all Layer
		n := o.Tokens + o.Next
		all.K = make([]float32, o.KVHeads*n*o.HeadDim)
		all.V = make([]float32, o.KVHeads*n*o.HeadDim)
		all.Q = make([]float32, o.KVHeads*o.GQA*n*o.HeadDim)
		for h := range o.KVHeads {
			newSynHead(o, text, rng).write(&all, h, c.Geometry.Rope.Frequencies())
		}
		for _, x := range [][]float32{all.K, all.V, all.Q} {
			for i := range x {
				x[i] = quant.F16ToF32(quant.F32ToF16(x[i]))
			}
		}
		c.Layers = append(c.Layers, sliceTokens(all, n, o.HeadDim, 0, o.Tokens))
		next.Layers = append(next.Layers, sliceTokens(all, n, o.HeadDim, o.Tokens, n))
	}
	return c, next, nil
}

// sliceTokens copies tokens [lo, hi) of all heads.
func sliceTokens(l Layer, n, dim, lo, hi int) Layer {
	side := func(x []float32) []float32 {
		var y []float32
		for at := 0; at < len(x); at += n * dim {
			y = append(y, x[at+lo*dim:at+hi*dim]...)
		}
		return y
	}
	return Layer{K: side(l.K), V: side(l.V), Q: side(l.Q)}
}

// synText is what all layers and heads share: the topics, and which token recalls which.
type synText struct {
	topic  [][]float64 // [tokens + next][synTopics]
	recall []int       // token that the query looks for, -1: none
}

func newSynText(o syntheticOptions, rng *rand.Rand) *synText {
	n := o.Tokens + o.Next
	t := &synText{topic: make([][]float64, n), recall: make([]int, n)}
	drift := math.Sqrt(1 - synTopicStay*synTopicStay)
	for i := range n {
		t.topic[i] = make([]float64, synTopics)
		jump := i == 0 || rng.Float64() < 1.0/synSentence
		for k := range synTopics {
			z := rng.NormFloat64()
			switch {
			case i == 0:
				t.topic[i][k] = z
			case jump: // half of the old topic stays
				t.topic[i][k] = 0.5*t.topic[i-1][k] + math.Sqrt(0.75)*z
			default:
				t.topic[i][k] = synTopicStay*t.topic[i-1][k] + drift*z
			}
		}
	}
	var recalled []int
	for i := range n {
		t.recall[i] = -1
		if i <= synSinks+16 || rng.Float64() >= synRecall {
			continue
		}
		fresh := synSinks + rng.IntN(min(i, o.Tokens)-synSinks)
		// Often something recalled before, the early ones most (Zipf); else something new.
		if len(recalled) > 0 && rng.Float64() < 0.8 {
			at := int(math.Exp(rng.Float64()*math.Log(float64(len(recalled))+1))) - 1
			fresh = recalled[min(at, len(recalled)-1)]
		} else {
			recalled = append(recalled, fresh)
		}
		t.recall[i] = fresh
	}
	return t
}

// synHead is one KV head with its query heads.
type synHead struct {
	o         syntheticOptions
	text      *synText
	rng       *rand.Rand
	biasK     []float64
	scaleK    []float64
	scaleV    []float64
	topicK    [][]float64 // [synTopics][head_dim]
	topicV    [][]float64
	meanQ     []float64
	sharpness []float64 // of every query head
	content   [][]float64
}

func newSynHead(o syntheticOptions, text *synText, rng *rand.Rand) *synHead {
	dim := o.HeadDim
	h := &synHead{o: o, text: text, rng: rng,
		biasK: make([]float64, dim), scaleK: make([]float64, dim),
		scaleV: make([]float64, dim), meanQ: make([]float64, dim)}
	for i := range dim {
		h.biasK[i] = synBias * rng.NormFloat64()
		h.scaleK[i] = math.Exp(0.4 * rng.NormFloat64())
		h.scaleV[i] = math.Exp(0.5 * rng.NormFloat64())
		h.meanQ[i] = 0.5 * rng.NormFloat64()
	}
	for range synMassive {
		// The slow half of the pairs, either component.
		i := dim/4 + rng.IntN(dim/4) + dim/2*rng.IntN(2)
		h.biasK[i] = math.Copysign(synMassiveAt, rng.NormFloat64())
		h.scaleK[i] *= 0.5
		h.meanQ[i] *= 0.3
	}
	matrix := func(size float64) [][]float64 {
		m := make([][]float64, synTopics)
		for k := range m {
			m[k] = make([]float64, dim)
			for i := range m[k] {
				m[k][i] = size * rng.NormFloat64()
			}
		}
		return m
	}
	h.topicK, h.topicV = matrix(0.35), matrix(0.25)
	for range o.GQA {
		h.sharpness = append(h.sharpness, 0.5+rng.Float64())
	}
	return h
}

// write fills the rows of KV head number head and of its query heads.
func (h *synHead) write(l *Layer, head int, freq []float64) {
	n, dim := h.o.Tokens+h.o.Next, h.o.HeadDim
	h.content = make([][]float64, n)
	row := make([]float64, dim)
	for t := range n {
		h.key(row, t)
		put(l.K[(head*n+t)*dim:], row, freq, t)
		h.value(row, t)
		put(l.V[(head*n+t)*dim:], row, nil, t)
	}
	for g := range h.o.GQA {
		for t := range n {
			h.query(row, t, g)
			put(l.Q[((head*h.o.GQA+g)*n+t)*dim:], row, freq, t)
		}
	}
}

// put stores a row after RoPE (half layout) at position t.
func put(dst []float32, row, freq []float64, t int) {
	for i, x := range row {
		dst[i] = float32(x)
	}
	half := len(row) / 2
	for i, f := range freq {
		sin, cos := math.Sincos(f * float64(t))
		x, y := row[i], row[i+half]
		dst[i], dst[i+half] = float32(x*cos-y*sin), float32(x*sin+y*cos)
	}
}

func (h *synHead) key(row []float64, t int) {
	h.content[t] = make([]float64, len(row))
	for i := range row {
		h.content[t][i] = h.scaleK[i] * h.rng.NormFloat64()
		row[i] = h.biasK[i] + h.content[t][i]
	}
	addTopic(row, h.topicK, h.text.topic[t])
	if t < synSinks {
		// Along the slow components of the mean query, whose score does not fade with distance:
		// about 8 nats above an ordinary row.
		energy := 0.0
		slow := func(i int) bool { return i%(len(row)/2) >= len(row)/4 }
		for i, q := range h.meanQ {
			if slow(i) {
				energy += q * q
			}
		}
		for i, q := range h.meanQ {
			row[i] = h.biasK[i] + 0.1*h.content[t][i]
			if slow(i) {
				row[i] += 8 * math.Sqrt(float64(len(row))) * q / energy
			}
		}
	}
}

func (h *synHead) value(row []float64, t int) {
	for i := range row {
		// Student's t: a Gaussian over the root of a mean square of Gaussians.
		var chi float64
		for range int(synTail) {
			z := h.rng.NormFloat64()
			chi += z * z
		}
		row[i] = h.scaleV[i] * h.rng.NormFloat64() / math.Sqrt(max(chi/synTail, 1e-3))
	}
	addTopic(row, h.topicV, h.text.topic[t])
	if t < synSinks {
		for i := range row {
			row[i] *= 0.05
		}
	}
}

func (h *synHead) query(row []float64, t, g int) {
	sharp := h.sharpness[g]
	for i := range row {
		row[i] = h.meanQ[i] + 0.4*h.rng.NormFloat64()
	}
	for k, z := range h.text.topic[t] {
		for i, w := range h.topicK[k] {
			row[i] += sharp * 0.45 * z * w
		}
	}
	if s := h.text.recall[t]; s >= 0 && s < t {
		for i, x := range h.content[s] {
			row[i] += sharp * 0.5 * x
		}
	}
}

func addTopic(row []float64, m [][]float64, z []float64) {
	for k, x := range z {
		for i, w := range m[k] {
			row[i] += x * w
		}
	}
}
