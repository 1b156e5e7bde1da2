// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/offline"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// TuningOptions say what a Tuning measures.
type TuningOptions struct {
	// Context and Next are those of Options. Defaults 512 and 128: a tuning takes hundreds of
	// measurements.
	Context, Next int
	// Bits are the rates, of the whole file. Default 2.75 and 2.25.
	Bits []float64
	// Penalty is what losing all that is asked for adds to the objective. Default 2.
	Penalty float64
	// Surprisal computes the tokens' surprisal, which only settings that use it need.
	Surprisal bool
	// Backend does the work of kvist.
	Backend backend.Backend
	// Profile gives the sensitivities that the setting "sensitivity" (SensitivitySetting) is an
	// exponent of; nil: none.
	Profile *profile.Profile
	// Progress, if set, is told what was prepared, of how much.
	Progress func(stage string, done, total int64)
}

func (o *TuningOptions) defaults() error {
	if o.Context == 0 {
		o.Context = 512
	}
	if o.Next == 0 {
		o.Next = 128
	}
	if o.Bits == nil {
		o.Bits = []float64{2.75, 2.25}
	}
	if o.Penalty == 0 {
		o.Penalty = 2
	}
	for _, b := range o.Bits {
		if !(b > 0 && b <= 64) {
			return shapef("tuning", "%v bits a value, want above 0 and up to 64", b)
		}
	}
	if len(o.Bits) == 0 || !(o.Penalty >= 0) || math.IsInf(o.Penalty, 0) || o.Backend == nil {
		return shapef("tuning", "%d rates, penalty %v, backend %v", len(o.Bits), o.Penalty, o.Backend)
	}
	return nil
}

// SensitivitySetting is a setting of a Tuning that no profile holds: the exponent that the
// measured factors are raised to. 0 switches them off.
const SensitivitySetting = "sensitivity"

// Tuning is the objective of tuning in the model (engine/tune.Objective):
//
//	mean over texts and rates of log KL(exact || kvist)  +  Penalty * lost
//
// with lost the mean, over the questions that the exact cache answers, of the share of the
// answer's probability that is gone: max(0, 1 - p/p_exact), p the probability of the whole
// answer, at the lowest rate. It is smooth where a count of answers found is not. Questions are
// asked after compression, which knows none of them.
//
// The texts go through the model once, when a Tuning is made; an evaluation compresses each
// context at each rate and runs the continuation over what is left.
type Tuning struct {
	m     *model.Model
	o     TuningOptions
	texts []tuneText
	asked []tuneAsked
	id    string
}

// The memos save the planner's probe of a context, which no setting but the sinks changes.
type tuneText struct {
	run  textRun
	c    *Context
	memo *offline.Memo
}

type tuneAsked struct {
	rc    RetrievalContext
	c     *Context
	exact Answers
	memo  *offline.Memo
}

// Measured is what settings do to texts and questions.
type Measured struct {
	Texts []string
	Bits  []float64
	// KL and BitsPerValue are [texts][rates].
	KL, BitsPerValue [][]float64
	// Found and Exact count the answers found at the lowest rate, and by the exact cache.
	Found, Exact, Asked int
	// Lost is the mean share of probability lost (see Tuning), [contexts].
	Lost []float64
}

// LogKL returns the mean log KL over the rates of a text.
func (r *Measured) LogKL(text int) float64 {
	var sum float64
	for _, v := range r.KL[text] {
		sum += math.Log(max(v, 1e-9))
	}
	return sum / float64(len(r.KL[text]))
}

// MeanLogKL returns the mean over texts and rates of log KL.
func (r *Measured) MeanLogKL() float64 {
	var sum float64
	for i := range r.KL {
		sum += r.LogKL(i)
	}
	return sum / float64(len(r.KL))
}

// MeanLost returns the mean of Lost; 0 without questions.
func (r *Measured) MeanLost() float64 {
	if len(r.Lost) == 0 {
		return 0
	}
	return mean(r.Lost)
}

// NewTuning runs texts and the contexts of questions through the model. questions may be nil.
//
// Errors: quant.ErrShape for no texts, texts that are too short and options that cannot be; those
// of the model.
func NewTuning(ctx context.Context, m *model.Model, texts []Input, questions *Retrieval,
	o TuningOptions) (*Tuning, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	if len(texts) == 0 {
		return nil, shapef("tuning", "no texts")
	}
	t := &Tuning{m: m, o: o}
	h := sha256.New()
	fmt.Fprintf(h, "%s context %d next %d bits %v penalty %v surprisal %v\n", m.Name, o.Context,
		o.Next, o.Bits, o.Penalty, o.Surprisal)
	total := int64(len(texts))
	if questions != nil {
		total += int64(len(questions.Contexts))
	}
	done := int64(0)
	say := func() {
		done++
		if o.Progress != nil {
			o.Progress("exact runs", done, total)
		}
	}
	for _, in := range texts {
		hashTokens(h, in.Tokens[:min(len(in.Tokens), o.Context+o.Next)])
		x, err := t.prepare(ctx, in)
		if err != nil {
			return nil, err
		}
		t.texts = append(t.texts, x)
		say()
	}
	if questions != nil {
		for _, rc := range questions.Contexts {
			hashTokens(h, rc.Tokens)
			for _, q := range rc.Questions {
				fmt.Fprintf(h, "%q %q\n", q.Prompt, q.Answer)
			}
			x, err := t.prepareAsked(ctx, rc)
			if err != nil {
				return nil, err
			}
			t.asked = append(t.asked, x)
			say()
		}
	}
	t.id = "model " + hex.EncodeToString(h.Sum(nil))
	return t, nil
}

func hashTokens(h hash.Hash, tokens []int32) {
	var b []byte
	for _, x := range tokens {
		b = binary.LittleEndian.AppendUint32(b, uint32(x))
	}
	_, _ = h.Write(binary.LittleEndian.AppendUint64(b, uint64(len(tokens)))) // never fails
}

func (t *Tuning) prepare(ctx context.Context, in Input) (tuneText, error) {
	x := tuneText{memo: &offline.Memo{}, run: textRun{m: t.m, in: in, o: Options{Context: t.o.Context, Next: t.o.Next}}}
	n := t.o.Context + t.o.Next
	if len(in.Tokens) < n {
		return x, shapef("tuning "+in.Name, "%d tokens, want %d of context and %d after", len(in.Tokens),
			t.o.Context, t.o.Next)
	}
	x.run.in.Tokens = in.Tokens[:n:n]
	c, kv, err := t.prefill(ctx, in.Tokens[:t.o.Context])
	if err != nil {
		return x, err
	}
	x.c = c
	x.run.ref = newReference(t.m.Vocab, x.run.in.Tokens[t.o.Context:])
	err = x.run.next(kv, x.run.ref.add)
	return x, err
}

func (t *Tuning) prepareAsked(ctx context.Context, rc RetrievalContext) (tuneAsked, error) {
	x := tuneAsked{rc: rc, memo: &offline.Memo{}}
	c, kv, err := t.prefill(ctx, rc.Tokens)
	if err != nil {
		return x, err
	}
	x.c = c
	err = x.exact.ask(t.m, kv, rc)
	return x, err
}

// prefill is that of the harness, with the tokens' surprisal where it is wanted.
func (t *Tuning) prefill(ctx context.Context, tokens []int32) (*Context, *model.ExactKV, error) {
	if !t.o.Surprisal {
		return prefill(ctx, t.m, tokens)
	}
	kv, err := t.m.NewKV(model.KVOptions{})
	if err != nil {
		return nil, nil, err
	}
	c := newCollector(t.m.Geometry(), len(tokens))
	surprisal := make([]float32, len(tokens))
	fo := model.ForwardOptions{Observer: c.observe, Logits: model.LogitsRange, To: len(tokens) - 1,
		OnLogits: func(i int, logits []float32) error {
			surprisal[i+1] = float32(model.Surprisal(logits, tokens[i+1]))
			return ctx.Err()
		}}
	if _, err := t.m.Forward(tokens, kv, 0, fo); err != nil {
		return nil, nil, err
	}
	out := c.context(tokens, len(tokens))
	out.Surprisal = surprisal
	return out, kv, nil
}

// WithSensitivity returns a Tuning of the same texts for which the setting "sensitivity" is the
// exponent of p's factors.
func (t *Tuning) WithSensitivity(p *profile.Profile) *Tuning {
	u := *t
	u.o.Profile = p
	return &u
}

// Identity implements tune.Objective.
func (t *Tuning) Identity() string {
	if t.o.Profile == nil {
		return t.id
	}
	return t.id + " " + t.o.Profile.Digest(profile.SectionSensitivity).Full()
}

// Evaluate implements tune.Objective. Rates that cannot be met give +Inf.
//
// Errors: those of Measure.
func (t *Tuning) Evaluate(ctx context.Context, p profile.Params) (float64, error) {
	r, err := t.Measure(ctx, p)
	if errors.Is(err, quant.ErrBudget) {
		return math.Inf(1), nil
	}
	if err != nil {
		return 0, err
	}
	return r.MeanLogKL() + t.o.Penalty*r.MeanLost(), nil
}

// config turns settings into a config without a target.
func (t *Tuning) config(p profile.Params) (offline.Config, error) {
	cfg := offline.DefaultConfig()
	power := 0.0
	if text, ok := p[SensitivitySetting]; ok {
		var err error
		if power, err = strconv.ParseFloat(text, 64); err != nil {
			return cfg, shapef("tuning", "%s=%s, want a number", SensitivitySetting, text)
		}
		p = maps.Clone(p)
		delete(p, SensitivitySetting)
	}
	cfg, err := cfg.WithParams(p)
	if err != nil || t.o.Profile == nil || power == 0 {
		return cfg, err
	}
	s, err := t.o.Profile.Sensitivity()
	if err != nil || s == nil {
		return cfg, err
	}
	cfg.Profile, err = t.o.Profile.WithSensitivity(s.Power(power), nil)
	return cfg, err
}

// Measure returns what settings do.
//
// Errors: quant.ErrUnsupported for a setting that there is none of; those of offline.Compress,
// quant.ErrBudget among them, and of the model.
func (t *Tuning) Measure(ctx context.Context, p profile.Params) (*Measured, error) {
	cfg, err := t.config(p)
	if err != nil {
		return nil, err
	}
	return t.MeasureConfig(ctx, cfg)
}

// MeasureConfig is Measure for a config; its target is not used.
func (t *Tuning) MeasureConfig(ctx context.Context, cfg offline.Config) (*Measured, error) {
	r := &Measured{Bits: t.o.Bits}
	for i := range t.texts {
		x := &t.texts[i]
		r.Texts = append(r.Texts, x.run.in.Name)
		var kl, bits []float64
		for _, b := range t.o.Bits {
			cfg.Bits, cfg.Memo = b, x.memo
			score, err := x.run.prefilled(ctx, x.c, Kvist{Config: cfg, Backend: t.o.Backend})
			if err != nil {
				return nil, err
			}
			kl, bits = append(kl, score.KL), append(bits, score.BitsPerValue)
		}
		r.KL, r.BitsPerValue = append(r.KL, kl), append(r.BitsPerValue, bits)
	}
	cfg.Bits = slices.Min(t.o.Bits)
	for i := range t.asked {
		cfg.Memo = t.asked[i].memo
		if err := t.ask(ctx, &t.asked[i], Kvist{Config: cfg, Backend: t.o.Backend}, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// ask puts the questions of one context.
func (t *Tuning) ask(ctx context.Context, x *tuneAsked, method Method, r *Measured) error {
	kv, _, err := compressed(ctx, t.m, x.c, method)
	if err != nil {
		return err
	}
	var a Answers
	if err := a.ask(t.m, kv, x.rc); err != nil {
		return err
	}
	var lost, n float64
	for q, known := range x.exact.Found[0] {
		r.Asked++
		if a.Found[0][q] {
			r.Found++
		}
		if !known {
			continue // what the exact cache does not know cannot be lost
		}
		r.Exact++
		n++
		lost += max(0, 1-math.Exp(x.exact.Nats[0][q]-a.Nats[0][q]))
	}
	if n > 0 {
		r.Lost = append(r.Lost, lost/n)
	}
	return nil
}

// Compare returns the mean ratio of KL of b over a, and the mean of what b loses less than a, with
// intervals over the texts and contexts of both.
//
// Errors: quant.ErrShape where they are not of the same texts and rates.
func Compare(a, b *Measured) (ratio, lost Interval, err error) {
	if !slices.Equal(a.Texts, b.Texts) || !slices.Equal(a.Bits, b.Bits) || len(a.Lost) != len(b.Lost) {
		return ratio, lost, shapef("compare", "measured on %s at %v and on %s at %v",
			strings.Join(a.Texts, " "), a.Bits, strings.Join(b.Texts, " "), b.Bits)
	}
	logs := make([]float64, len(a.KL))
	for i := range logs {
		logs[i] = b.LogKL(i) - a.LogKL(i)
	}
	ratio = Bootstrap(logs)
	ratio.Mean, ratio.Low, ratio.High = math.Exp(ratio.Mean), math.Exp(ratio.Low), math.Exp(ratio.High)
	if len(a.Lost) > 0 {
		diff := make([]float64, len(a.Lost))
		for i := range diff {
			diff[i] = b.Lost[i] - a.Lost[i]
		}
		lost = Bootstrap(diff)
	}
	return ratio, lost, nil
}
