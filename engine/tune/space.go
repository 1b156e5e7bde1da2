// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// Param is a setting in a search.
type Param struct {
	// Name is a setting of profile.Params, or "importance." and a field of an importance.Weighting.
	Name string
	// Start is the first value.
	Start string
	// Grid lists the values of the coarse search. A setting that is not a number takes only these.
	Grid []string
	// Low and High bound the refinement of a number. If they are equal, only the grid is searched.
	Low, High float64
	// Log mutates by factors. Low must then be positive. A Start or Grid value of 0 is special: the
	// search leaves it and returns to it through the grid only.
	Log bool
	// Integer rounds to whole numbers.
	Integer bool
	// Price is added to the objective for any value other than Start.
	Price float64
}

// Space lists the settings to search. Settings not in it keep their values.
type Space []Param

const importancePrefix = "importance."

// numeric reports whether the setting is refined between Low and High.
func (p *Param) numeric() bool { return p.Low < p.High }

// Validate checks names, grids and ranges.
//
// Errors: quant.ErrShape.
func (s Space) Validate() error {
	seen := map[string]bool{}
	for i := range s {
		p := &s[i]
		if seen[p.Name] {
			return shapef("setting %s is given twice", p.Name)
		}
		seen[p.Name] = true
		if p.Name == "" || p.Start == "" || math.IsNaN(p.Price) || p.Price < 0 {
			return shapef("setting %q: start %q, price %v", p.Name, p.Start, p.Price)
		}
		if p.Low > p.High || math.IsNaN(p.Low) || math.IsNaN(p.High) || math.IsInf(p.Low, 0) ||
			math.IsInf(p.High, 0) || (p.Log && p.numeric() && p.Low <= 0) {
			return shapef("setting %s: range %v to %v", p.Name, p.Low, p.High)
		}
		for _, v := range append([]string{p.Start}, p.Grid...) {
			if v == "" || strings.ContainsAny(v, " \n\t") {
				return shapef("setting %s: value %q", p.Name, v)
			}
			x, err := strconv.ParseFloat(v, 64)
			if p.numeric() && (err != nil || math.IsNaN(x) || math.IsInf(x, 0)) {
				return shapef("setting %s: value %q, want a number", p.Name, v)
			}
		}
	}
	return nil
}

// String describes the whole space.
func (s Space) String() string {
	var b strings.Builder
	for _, p := range s {
		fmt.Fprintf(&b, "%s start=%s grid=%s range=%v..%v log=%v integer=%v price=%v\n", p.Name, p.Start,
			strings.Join(p.Grid, ","), p.Low, p.High, p.Log, p.Integer, p.Price)
	}
	return b.String()
}

// point is a value for each setting of a space.
type point []string

func (s Space) start() point {
	x := make(point, len(s))
	for i := range s {
		x[i] = s[i].Start
	}
	return x
}

// price is the sum of the prices of the settings of x that left their start.
func (s Space) price(x point) (sum float64) {
	for i := range s {
		if x[i] != s[i].Start {
			sum += s[i].Price
		}
	}
	return sum
}

// params converts a point to settings. base holds the settings outside the space; an importance
// profile in base keeps the fields that the space does not name.
func (s Space) params(base profile.Params, x point) (profile.Params, error) {
	out := maps.Clone(base)
	if out == nil {
		out = profile.Params{}
	}
	fields := map[string]string{}
	if text := base["importance"]; text != "" {
		p, err := importance.ParseWeighting(text)
		if err != nil {
			return nil, fmt.Errorf("kvist/tune: %w", err)
		}
		if text = p.String(); text != "none" {
			for f := range strings.SplitSeq(text, ",") {
				k, v, _ := strings.Cut(f, "=")
				fields[k] = v
			}
		}
	}
	touched := false
	for i := range s {
		name, ok := strings.CutPrefix(s[i].Name, importancePrefix)
		if !ok {
			out[s[i].Name] = x[i]
			continue
		}
		fields[name], touched = x[i], true
	}
	if !touched {
		return out, nil
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		parts = append(parts, k+"="+fields[k])
	}
	p, err := importance.ParseWeighting(strings.Join(parts, ","))
	if err != nil {
		return nil, fmt.Errorf("kvist/tune: %w", err)
	}
	out["importance"] = p.String()
	return out, nil
}

// number formats the value of a setting with three digits, which is enough and keeps profiles
// readable.
func (p *Param) number(v float64) string {
	v = min(max(v, p.Low), p.High)
	if p.Integer {
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	}
	// Rounding may exceed a bound by half a digit; then use the bound, which is as short.
	w, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64)
	if err != nil || w < p.Low || w > p.High {
		w = v
	}
	if w == 0 {
		w = 0 // not -0
	}
	return strconv.FormatFloat(w, 'g', -1, 64)
}

func shapef(format string, args ...any) error {
	return fmt.Errorf("kvist/tune: "+format+": %w", append(args, quant.ErrShape)...)
}

// Value returns the value that settings have of a Param of the space; its Start where they do not
// name it, "0" where an importance.Weighting leaves it out.
//
// Errors: quant.ErrShape for a name that is not in the space.
func (s Space) Value(p profile.Params, name string) (string, error) {
	x, err := s.point(p)
	if err != nil {
		return "", err
	}
	for i := range s {
		if s[i].Name == name {
			return x[i], nil
		}
	}
	return "", shapef("no setting %s", name)
}

// Replace returns settings with one Param's value changed.
//
// Errors: quant.ErrShape for a name that is not in the space, or an invalid value.
func (s Space) Replace(p profile.Params, name, value string) (profile.Params, error) {
	x, err := s.point(p)
	if err != nil {
		return nil, err
	}
	for i := range s {
		if s[i].Name == name {
			x[i] = value
			return s.params(p, x)
		}
	}
	return nil, shapef("no setting %s", name)
}

// point converts settings to a point.
func (s Space) point(p profile.Params) (point, error) {
	weights, err := importance.ParseWeighting(cmp.Or(p["importance"], "none"))
	if err != nil {
		return nil, fmt.Errorf("kvist/tune: %w", err)
	}
	fields := map[string]string{}
	for f := range strings.SplitSeq(weights.String(), ",") {
		k, v, _ := strings.Cut(f, "=")
		fields[k] = v
	}
	x := s.start()
	for i := range s {
		name, ok := strings.CutPrefix(s[i].Name, importancePrefix)
		switch v, given := p[s[i].Name]; {
		case ok:
			x[i] = cmp.Or(fields[name], "0")
		case given:
			x[i] = v
		}
	}
	return x, nil
}
