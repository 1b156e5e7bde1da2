// SPDX-License-Identifier: Apache-2.0

package tuning

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

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Options configure an Objective.
type Options struct {
	// Context and Next are as in quality.Options. Defaults 512 and 128: a search takes hundreds of
	// measurements.
	Context, Next int
	// Bits are the rates, in bits a value of the whole file. Default 2.75 and 2.25.
	Bits []float64
	// Penalty is the value that losing every answer adds. Default 2.
	Penalty float64
	// Surprisal computes the surprisal of the tokens. Only settings that use it need it.
	Surprisal bool
	// Backend compresses. It must be set.
	Backend backend.Backend
	// Profile has the sensitivities that SensitivitySetting raises to a power; nil: none.
	Profile *profile.Profile
	// Progress, if set, is called by New after each text and context.
	Progress func(stage string, done, total int64)
}

func (o *Options) defaults() error {
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

// SensitivitySetting is a setting of an Objective that profiles do not store: the exponent of the
// measured factors. 0 switches them off.
const SensitivitySetting = "sensitivity"

// Objective measures settings in the model. Its value is
//
//	mean over texts and rates of log KL(exact || kvist)  +  Penalty * lost
//
// where lost is the mean of max(0, 1 - p/p_exact) over the questions that the exact cache answers, p
// the probability of the whole answer at the lowest rate. Unlike a count of answers it is smooth.
// Questions are asked after compression, which does not know them.
//
// New runs the texts through the model once. An evaluation compresses each context at each rate and
// runs the continuation over the result. Objective implements tune.Objective.
type Objective struct {
	m     *model.Model
	o     Options
	texts []*quality.Run
	asked []asked
	id    string
}

type asked struct {
	rc    quality.RetrievalContext
	c     *methods.Context
	exact quality.Answers
}

// New runs texts and the contexts of questions through the model. questions may be nil.
//
// Errors: quant.ErrShape for no texts, texts that are too short and options out of range; those of the
// model.
func New(ctx context.Context, m *model.Model, texts []quality.Input, questions *quality.Retrieval,
	o Options) (*Objective, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	if len(texts) == 0 {
		return nil, shapef("tuning", "no texts")
	}
	t := &Objective{m: m, o: o}
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
		x, err := quality.NewRun(ctx, m, in, quality.Options{Context: o.Context, Next: o.Next,
			Surprisal: o.Surprisal})
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

func (t *Objective) prepareAsked(ctx context.Context, rc quality.RetrievalContext) (asked, error) {
	x := asked{rc: rc}
	c, kv, err := quality.Prefill(ctx, t.m, rc.Tokens, t.o.Surprisal)
	if err != nil {
		return x, err
	}
	x.c = c
	err = x.exact.Ask(t.m, kv, rc)
	return x, err
}

// WithSensitivity returns an Objective of the same texts with the sensitivities of p.
func (t *Objective) WithSensitivity(p *profile.Profile) *Objective {
	u := *t
	u.o.Profile = p
	return &u
}

// Identity implements tune.Objective.
func (t *Objective) Identity() string {
	if t.o.Profile == nil {
		return t.id
	}
	return t.id + " " + t.o.Profile.Digest(profile.SectionSensitivity).Full()
}

// Evaluate implements tune.Objective. It returns +Inf if a rate cannot be met.
//
// Errors: those of Measure.
func (t *Objective) Evaluate(ctx context.Context, p profile.Params) (float64, error) {
	r, err := t.Measure(ctx, p)
	if errors.Is(err, quant.ErrBudget) {
		return math.Inf(1), nil
	}
	if err != nil {
		return 0, err
	}
	return r.MeanLogKL() + t.o.Penalty*r.MeanLost(), nil
}

// config returns the config of some settings, without a target.
func (t *Objective) config(p profile.Params) (kvfile.Config, error) {
	cfg := kvfile.DefaultConfig()
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

// Measure measures settings.
//
// Errors: quant.ErrUnsupported for a setting that does not exist; those of kvfile.Compress, such as
// quant.ErrBudget; those of the model.
func (t *Objective) Measure(ctx context.Context, p profile.Params) (*Measured, error) {
	cfg, err := t.config(p)
	if err != nil {
		return nil, err
	}
	return t.MeasureConfig(ctx, cfg)
}

// MeasureConfig measures a config. It ignores the target of cfg.
func (t *Objective) MeasureConfig(ctx context.Context, cfg kvfile.Config) (*Measured, error) {
	r := &Measured{Bits: t.o.Bits}
	for _, x := range t.texts {
		r.Texts = append(r.Texts, x.Name)
		x = withMemo(x)
		var kl, bits []float64
		for _, b := range t.o.Bits {
			cfg.Bits = b
			score, err := x.Measure(ctx, methods.Kvist{Config: cfg, Backend: t.o.Backend})
			if err != nil {
				return nil, err
			}
			kl, bits = append(kl, score.KL), append(bits, score.BitsPerValue)
		}
		r.KL, r.BitsPerValue = append(r.KL, kl), append(r.BitsPerValue, bits)
	}
	cfg.Bits = slices.Min(t.o.Bits)
	for i := range t.asked {
		err := t.ask(ctx, &t.asked[i], methods.Kvist{Config: cfg, Backend: t.o.Backend}, r)
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

// withMemo returns a run with a memo, so that the rates of one evaluation share what kvist measures of
// the context. A memo for all evaluations would grow with each of them.
func withMemo(r *quality.Run) *quality.Run {
	run, c := *r, *r.Context
	c.Memo = &kvfile.Memo{}
	run.Context = &c
	return &run
}

// ask asks the questions of one context.
func (t *Objective) ask(ctx context.Context, x *asked, method methods.Method, r *Measured) error {
	kv, _, err := quality.Compressed(ctx, t.m, x.c, method)
	if err != nil {
		return err
	}
	var a quality.Answers
	if err := a.Ask(t.m, kv, x.rc); err != nil {
		return err
	}
	var lost, n float64
	for q, known := range x.exact.Found[0] {
		r.Asked++
		if a.Found[0][q] {
			r.Found++
		}
		if !known {
			continue // only what the exact cache answers can be lost
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
