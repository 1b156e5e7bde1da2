// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/bench/quality"
	"github.com/kvist-project/kvist/bench/quality/texts"
	"github.com/kvist-project/kvist/bench/tuning"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

const sensitivitySetting = tuning.SensitivitySetting

// sensitivityParam is the exponent of the measured factors.
func sensitivityParam() tune.Param {
	return tune.Param{Name: sensitivitySetting, Start: "0", Grid: []string{"0.25", "0.5", "1"}, Low: 0,
		High: 1.5, Price: 0.01}
}

// sensitivityCoding is the noise that sensitivities are measured with: that of two bits, where most
// of the damage of the rates tuned for lies.
func sensitivityCoding() quant.Coding {
	return quant.Coding{Format: quant.LM2, Rule: quant.LengthKeeping, Scale: quant.ScaleLog8}
}

// sensitivityTexts is how many of the texts sensitivities are measured on: two give what a search on
// a handful of texts can use, and a pass for each side of each head is not cheap.
const sensitivityTexts = 2

// modelTuner measures in the model.
type modelTuner struct {
	m       *model.Model
	geo     quant.Geometry
	o       tuning.Options
	tuning  *tuning.Objective
	hold    *tuning.Objective // nil: none
	texts   map[string][]byte
	holdMin *tuning.Measured // the best settings on the holdout
	sens    *profile.Sensitivity
	sensHow profile.Meta
}

func (a *app) newModelTuner(ctx context.Context, f *tuneFlags, bits []float64, be backend.Backend,
	say progress) (*modelTuner, error) {
	mf := modelFlags{threads: f.backend.threads}
	m, err := mf.open(f.model, f.context+f.next)
	if err != nil {
		return nil, err
	}
	geo, err := m.CacheGeometry()
	if err != nil {
		return nil, err
	}
	t := &modelTuner{m: m, geo: geo, texts: map[string][]byte{}, o: tuning.Options{Context: f.context,
		Next: f.next, Bits: bits, Penalty: f.penalty, Surprisal: true, Backend: be, Progress: say}}
	bodies, err := a.tuneTexts(ctx, f.texts, texts.RoleCalib)
	if err != nil {
		return nil, err
	}
	for _, b := range bodies {
		t.texts[b.Name] = []byte(b.Body)
	}
	if t.tuning, err = t.make(ctx, bodies, f.needles, f.seed); err != nil {
		return nil, err
	}
	if len(f.holdout) > 0 {
		names := f.holdout
		if len(names) == 1 && names[0] == holdoutStandard {
			names = nil
		}
		if bodies, err = a.tuneTexts(ctx, names, texts.RoleEval); err != nil {
			return nil, err
		}
		for _, b := range bodies {
			if string(t.texts[b.Name]) == b.Body {
				return nil, usagef("--holdout %s: it is one of the texts to tune on", b.Name)
			}
		}
		// Other questions than those tuned on, three contexts for each of those.
		if t.hold, err = t.make(ctx, bodies, 3*f.needles, f.seed+1000); err != nil {
			return nil, err
		}
	}
	if f.sensitivity {
		err = t.measure(ctx, f, say)
	}
	return t, err
}

// tuneTexts reads text files, or takes those that kvist comes with.
func (a *app) tuneTexts(ctx context.Context, names []string, role string) ([]texts.Text, error) {
	if len(names) == 0 {
		return texts.WithRole(role), nil
	}
	var out []texts.Text
	for _, name := range names {
		body, err := a.readText(ctx, name)
		if err != nil {
			return nil, err
		}
		base := filepath.Base(name)
		out = append(out, texts.Text{Name: strings.TrimSuffix(base, filepath.Ext(base)), Body: body})
	}
	return out, nil
}

func (t *modelTuner) make(ctx context.Context, bodies []texts.Text, needles int,
	seed uint64) (*tuning.Objective, error) {
	var inputs []quality.Input
	var all []string
	for _, b := range bodies {
		in, err := quality.Tokenize(t.m.Tokenizer(), b.Name, b.Body, quality.Options{
			Context: t.o.Context, Next: t.o.Next})
		if err != nil {
			return nil, err
		}
		inputs, all = append(inputs, in), append(all, b.Body)
	}
	var q *quality.Retrieval
	if needles > 0 {
		var err error
		if q, err = quality.NewRetrieval(t.m.Tokenizer(), all, needles, t.o.Context, seed); err != nil {
			return nil, err
		}
	}
	return tuning.New(ctx, t.m, inputs, q, t.o)
}

// measure takes the sensitivities from the file beside the state, or measures them.
func (t *modelTuner) measure(ctx context.Context, f *tuneFlags, say progress) error {
	id := t.tuning.Identity()
	path := ""
	if f.state != "" {
		path = f.sensitivityState()
		p, err := profile.Open(path, profile.Limits{})
		if err == nil && p.Meta(profile.SectionSensitivity)["of"] == id {
			t.sensHow = p.Meta(profile.SectionSensitivity)
			if t.sens, err = p.Sensitivity(); err == nil {
				return t.use(p)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s, err := t.tuning.MeasureSensitivities(ctx, sensitivityCoding(), false, sensitivityTexts, say)
	if err != nil {
		return err
	}
	t.sens = s.Factors()
	t.sensHow = profile.Meta{"of": id, "made-by": "kvist tune " + versionText(),
		"noise": s.Coding.String(), "texts": strings.Join(s.Texts, " "), "passes": fmt.Sprint(s.Passes),
		"kl-of-all": formatValue(s.All), "kl-summed": formatValue(s.Sum())}
	p, err := profile.New(t.m.Name, t.geo)
	if err != nil {
		return err
	}
	if p, err = p.WithSensitivity(t.sens, t.sensHow); err != nil {
		return err
	}
	if path != "" {
		if err := p.Write(path, true); err != nil {
			return err
		}
	}
	return t.use(p)
}

func (t *modelTuner) use(p *profile.Profile) error {
	t.tuning = t.tuning.WithSensitivity(p)
	if t.hold != nil {
		t.hold = t.hold.WithSensitivity(p)
	}
	return nil
}

func (t *modelTuner) objective() tune.Objective { return t.tuning }

func (t *modelTuner) describe() (objective, made string) {
	return fmt.Sprintf("in the model: mean log KL at %v bits, context %d, next %d, penalty %v",
		t.o.Bits, t.o.Context, t.o.Next, t.o.Penalty), textHashes(t.texts)
}

func (t *modelTuner) model() (string, quant.Geometry) { return t.m.Name, t.geo }

func (t *modelTuner) sensitivity() (*profile.Sensitivity, profile.Meta) { return t.sens, t.sensHow }

func (t *modelTuner) holdout(ctx context.Context, start, best profile.Params) (*holdoutJSON, error) {
	if t.hold == nil {
		return nil, nil
	}
	before, err := t.hold.Measure(ctx, start)
	if err != nil {
		return nil, err
	}
	after, err := t.hold.Measure(ctx, best)
	if err != nil {
		return nil, err
	}
	t.holdMin = after
	h := &holdoutJSON{Bits: t.o.Bits, Texts: len(before.Texts), Before: ofMeasured(before),
		After: ofMeasured(after)}
	ratio, lost, err := tuning.Compare(before, after)
	h.Ratio, h.Lost = intervalJSON(ratio), intervalJSON(lost)
	return h, err
}

func (t *modelTuner) against(ctx context.Context, params profile.Params) (ratio, lost intervalJSON,
	err error) {
	m, err := t.hold.Measure(ctx, params)
	if err != nil {
		return ratio, lost, err
	}
	r, l, err := tuning.Compare(t.holdMin, m)
	return intervalJSON(r), intervalJSON(l), err
}

func ofMeasured(m *tuning.Measured) measuredJSON {
	out := measuredJSON{Found: m.Found, Exact: m.Exact, Asked: m.Asked, Lost: m.MeanLost()}
	for r := range m.Bits {
		var kl, bits float64
		for i := range m.KL {
			kl += m.KL[i][r] / float64(len(m.KL))
			bits += m.BitsPerValue[i][r] / float64(len(m.KL))
		}
		out.KL, out.BitsPerValue = append(out.KL, kl), append(out.BitsPerValue, bits)
	}
	return out
}

// textHashes renders names and hashes of texts for a profile: "name:sha256[:16]" joined by spaces, sorted.
func textHashes(texts map[string][]byte) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		sum := sha256.Sum256(texts[name])
		parts = append(parts, name+":"+hex.EncodeToString(sum[:8]))
	}
	return strings.Join(parts, " ")
}
