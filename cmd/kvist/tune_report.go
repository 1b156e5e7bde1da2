// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
)

type intervalJSON struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// measuredJSON is what settings do: slices are by rate.
type measuredJSON struct {
	KL           []float64 `json:"kl"`
	BitsPerValue []float64 `json:"bits_per_value"`
	Found        int       `json:"found"`
	Exact        int       `json:"exact"`
	Asked        int       `json:"asked"`
	Lost         float64   `json:"lost"`
}

// holdoutJSON is start and result on data not tuned on.
type holdoutJSON struct {
	Texts  int          `json:"texts"`
	Bits   []float64    `json:"bits"`
	Before measuredJSON `json:"before"`
	After  measuredJSON `json:"after"`
	// Ratio of the damage, after over before; Lost, after less before.
	Ratio intervalJSON `json:"ratio"`
	Lost  intervalJSON `json:"lost"`

	captures bool
}

// summary is one line for the meta of a profile.
func (h *holdoutJSON) summary() string {
	what := "KL"
	if h.captures {
		what = "future-attention error"
	}
	s := fmt.Sprintf("%d texts: %s after/before %.3f (%.3f to %.3f)", h.Texts, what, h.Ratio.Mean,
		h.Ratio.Low, h.Ratio.High)
	if h.After.Asked > 0 {
		s += fmt.Sprintf(", answers found %d before, %d after, %d by the exact cache, of %d",
			h.Before.Found, h.After.Found, h.Before.Exact, h.Before.Asked)
	}
	return s
}

// verdict says in words whether the result is better than what it started from.
func (h *holdoutJSON) verdict() string {
	switch {
	case h.Lost.Low > 0:
		return "the result LOSES answers that the start keeps, on data not tuned on: do not use the profile"
	case h.Ratio.Low > 1:
		return "the result is WORSE than the start on data not tuned on: do not use the profile"
	case h.Ratio.High < 1:
		return "the result is better than the start on data not tuned on"
	}
	return "result and start cannot be told apart on this data: the start's settings are as good"
}

// ablationJSON is the best settings with one of them changed, on the holdout.
type ablationJSON struct {
	Setting string `json:"setting"`
	// Best is its value in the result; Value the one put in its place: that of the start where it
	// was changed, else the best of the grid.
	Best  string `json:"best"`
	Value string `json:"value"`
	// Ratio is the damage with Value over that with Best, Lost what is lost more.
	Ratio intervalJSON `json:"ratio"`
	Lost  intervalJSON `json:"lost"`
}

// ablate changes one setting of the result after the other.
func ablate(ctx context.Context, t tuner, space tune.Space, res *tune.Result,
	say progress) ([]ablationJSON, error) {
	var out []ablationJSON
	for i, p := range space {
		if say != nil {
			say("ablation", int64(i), int64(len(space)))
		}
		best, err := space.Value(res.Best.Params, p.Name)
		if err != nil {
			return nil, err
		}
		value := p.Start
		if best == value {
			if value = gridBest(res, space, p.Name); value == "" {
				continue
			}
		}
		params, err := space.Replace(res.Best.Params, p.Name, value)
		if err != nil {
			return nil, err
		}
		ratio, lost, err := t.against(ctx, params)
		if err != nil {
			return nil, err
		}
		out = append(out, ablationJSON{Setting: p.Name, Best: best, Value: value, Ratio: ratio,
			Lost: lost})
	}
	return out, nil
}

// gridBest is the best value of a setting on its grid other than its start.
func gridBest(res *tune.Result, space tune.Space, name string) string {
	value, cost := "", 0.0
	for _, e := range res.Trail {
		if e.Stage != "grid "+name {
			continue
		}
		v, err := space.Value(e.Params, name)
		if err == nil && (value == "" || e.Value < cost) {
			value, cost = v, e.Value
		}
	}
	return value
}

// tuneJSON is what --json prints.
type tuneJSON struct {
	Output      string         `json:"output"`
	Profile     string         `json:"profile"`
	Model       string         `json:"model"`
	Objective   string         `json:"objective"`
	Evaluations int            `json:"evaluations"`
	Seed        uint64         `json:"seed"`
	Params      profile.Params `json:"params"`
	Sensitivity float64        `json:"sensitivity"`
	Start       valueJSON      `json:"start"`
	Best        valueJSON      `json:"best"`
	Holdout     *holdoutJSON   `json:"holdout"`
	Ablation    []ablationJSON `json:"ablation"`
	Trail       []valueJSON    `json:"trail"`

	complete bool
	id       profile.ID
}

type valueJSON struct {
	Stage  string   `json:"stage"`
	Value  *float64 `json:"value"`
	Params string   `json:"params"`
}

func ofEvaluation(e tune.Evaluation) valueJSON {
	return valueJSON{e.Stage, number(e.Value), e.Params.String()}
}

func tuneSummary(f *tuneFlags, t tuner, p *profile.Profile, res *tune.Result, hold *holdoutJSON,
	worth []ablationJSON) *tuneJSON {
	objective, _ := t.describe()
	params := maps.Clone(res.Best.Params)
	power := powerOf(params)
	delete(params, sensitivitySetting)
	s := &tuneJSON{Output: f.out, Profile: p.ID().Full(), Model: p.Model(), Objective: objective,
		Evaluations: len(res.Trail), Seed: f.seed, Params: params, Sensitivity: power,
		Start: ofEvaluation(res.Start), Best: ofEvaluation(res.Best), Holdout: hold, Ablation: worth,
		Trail: []valueJSON{}, complete: res.Complete, id: p.ID()}
	for _, e := range res.Trail {
		s.Trail = append(s.Trail, ofEvaluation(e))
	}
	return s
}

func (s *tuneJSON) print(p *printer) {
	p.printf("%s: profile %s of %s\n", s.Output, s.id, s.Model)
	p.printf("objective  %s\n", s.Objective)
	p.printf("searched   %d evaluations, %s -> %s\n", s.Evaluations, valueText(s.Start.Value),
		valueText(s.Best.Value))
	if !s.complete {
		p.printf("           the evaluations ran out before the grid was through: --evaluations more\n")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Params)) {
		p.printf("param      %s=%s\n", k, s.Params[k])
	}
	switch {
	case s.Sensitivity != 0:
		p.printf("heads      sensitivities to the power of %g\n", s.Sensitivity)
	case strings.Contains(s.Objective, "model"):
		p.printf("heads      no sensitivities: they did not pay here\n")
	}
	if s.Holdout != nil {
		s.Holdout.print(p)
	}
	if len(s.Ablation) > 0 {
		p.printf("\nwhat each setting is worth, on the holdout: the result with one setting changed\n\n")
		t := newTable([]any{"setting", "result", "changed to", "damage x", "95 %", "lost +", "95 %"}, 3, 4,
			5, 6)
		for _, x := range s.Ablation {
			t.AppendRow([]any{strings.TrimPrefix(x.Setting, "importance."), x.Best, x.Value,
				fmt.Sprintf("%.3f", x.Ratio.Mean), span(x.Ratio), fmt.Sprintf("%+.3f", x.Lost.Mean),
				span(x.Lost)})
		}
		p.table(t)
	}
}

func valueText(v *float64) string {
	if v == nil {
		return "none"
	}
	return fmt.Sprintf("%.4f", *v)
}

func span(x intervalJSON) string { return fmt.Sprintf("%.3f to %.3f", x.Low, x.High) }

func (h *holdoutJSON) print(p *printer) {
	p.printf("\nholdout, %d texts not tuned on\n\n", h.Texts)
	if !h.captures {
		t := newTable([]any{"bits", "KL before", "KL after"}, 0, 1, 2)
		for i, b := range h.Bits {
			t.AppendRow([]any{b, fmt.Sprintf("%.4f", h.Before.KL[i]), fmt.Sprintf("%.4f", h.After.KL[i])})
		}
		p.table(t)
		p.printf("\n")
	}
	p.printf("%s\n%s\n", h.summary(), h.verdict())
	if h.After.Asked > 0 {
		p.printf("share of the answers' probability lost: %.3f before, %.3f after (%+.3f, %s)\n",
			h.Before.Lost, h.After.Lost, h.Lost.Mean, span(h.Lost))
	}
}
