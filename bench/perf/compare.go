// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Comparison holds a record against an older one of the same machine.
type Comparison struct {
	Changes []Change // of each group, then of each name
	Missing []string // names of one record only
}

// Change is what became of a name, or of all names of a group. Times are processor times relative to those of the
// baseline beside each sample, so that a faster clock or a busier machine is no change.
type Change struct {
	Name  string  `json:"name"`
	Group bool    `json:"group"`
	Ratio float64 `json:"ratio"` // new time over old time
	Least float64 `json:"least"` // the smallest change that would be told from noise, as a share
}

// Slower and Faster tell changes from noise.
func (c Change) Slower() bool { return c.Ratio > 1+c.Least }
func (c Change) Faster() bool { return c.Ratio < 1/(1+c.Least) }

// Slower are the changes for the worse.
func (c *Comparison) Slower() (out []Change) {
	for _, x := range c.Changes {
		if x.Slower() {
			out = append(out, x)
		}
	}
	return out
}

const (
	// leastChange is what counts as a change where there is no noise: where code lies in memory moves times as much.
	leastChange = 0.04
	// certainty is how many standard errors a change has to be. Some 200 names are compared, and noise has
	// heavy tails.
	certainty = 4
)

// Compare holds a record against an older one. The noise of a name is told from how much the medians of its rounds
// differ in both records, and from what is usual among all names.
//
// Errors: quant.ErrUnsupported for records that differ in machine, backend or settings, or share no name.
func Compare(old, now *Record) (*Comparison, error) {
	if err := comparable(old, now); err != nil {
		return nil, err
	}
	c := &Comparison{}
	usual := usualNoise(old, now)
	byGroup := map[string][]pair{}
	var order []string
	for i := range now.Results {
		x := &now.Results[i]
		y := old.Find(x.Name)
		if x.Group() == "memory" { // what others are held against
			continue
		}
		if y == nil || len(x.Relative) == 0 || len(y.Relative) == 0 {
			c.Missing = append(c.Missing, x.Name)
			continue
		}
		p := newPair(x.Name, y, x, usual)
		g := x.Group()
		if byGroup[g] == nil {
			order = append(order, g)
		}
		byGroup[g] = append(byGroup[g], p)
	}
	for i := range old.Results {
		if y := &old.Results[i]; y.Group() != "memory" && now.Find(y.Name) == nil {
			c.Missing = append(c.Missing, y.Name)
		}
	}
	if len(order) == 0 {
		return nil, fmt.Errorf("kvist/perf: the records have no measurement in common: %w", quant.ErrUnsupported)
	}
	for _, g := range order {
		if len(byGroup[g]) > 1 {
			c.Changes = append(c.Changes, groupChange(g, byGroup[g]))
		}
	}
	for _, g := range order {
		for _, p := range byGroup[g] {
			c.Changes = append(c.Changes, p.change())
		}
	}
	return c, nil
}

// comparable names what keeps two records from being compared.
func comparable(old, now *Record) error {
	var differ []string
	check := func(what string, a, b any) {
		if a != b {
			differ = append(differ, fmt.Sprintf("%s (%v, %v)", what, a, b))
		}
	}
	check("processor", old.Machine.Processor, now.Machine.Processor)
	check("cores", old.Machine.Cores, now.Machine.Cores)
	check("backend", old.Backend.Name, now.Backend.Name)
	check("instruction set", old.Backend.ISA, now.Backend.ISA)
	check("threads", old.Threads, now.Threads)
	check("--quick", old.Quick, now.Quick)
	check("working set", old.WorkingSet, now.WorkingSet)
	if len(differ) > 0 {
		return fmt.Errorf("kvist/perf: the records differ in %s: %w", strings.Join(differ, ", "), quant.ErrUnsupported)
	}
	return nil
}

// pair is a name in both records: the logarithm of the ratio of their times, and its standard error.
type pair struct {
	name       string
	log, error float64
}

// rounds are the logarithms of the medians of the rounds of a result.
func rounds(r *Result) (out []float64) {
	for _, x := range r.Relative {
		out = append(out, math.Log(x.Median))
	}
	return out
}

func newPair(name string, old, now *Result, usual float64) pair {
	a, b := rounds(old), rounds(now)
	noise := max(usual, deviation(a), deviation(b))
	per := 1/float64(len(a)) + 1/float64(len(b))
	return pair{name: name, log: middle(b) - middle(a), error: medianError * noise * math.Sqrt(per)}
}

func (p pair) change() Change {
	return Change{Name: p.name, Ratio: digits4(math.Exp(p.log)), Least: digits4(max(leastChange, math.Expm1(certainty*p.error)))}
}

// groupChange is the change of all names of a group. A round that was slow for all of them does not average out, so
// half of the error of a single name stays.
func groupChange(name string, all []pair) Change {
	var logs, errors []float64
	for _, p := range all {
		logs, errors = append(logs, p.log), append(errors, p.error)
	}
	e := middle(errors)
	e = max(e/2, e/math.Sqrt(float64(len(all))))
	return Change{Name: name, Group: true, Ratio: digits4(math.Exp(middle(logs))),
		Least: digits4(max(leastChange, math.Expm1(certainty*e)))}
}

// usualNoise is the standard deviation of the median of a round from those of other rounds, as is usual among the
// names of both records: the upper quartile, because deviations of two or three rounds are too small more often
// than too large. Records of one round do not tell: the spread of samples stands in for it.
func usualNoise(records ...*Record) float64 {
	var all []float64
	for _, r := range records {
		for i := range r.Results {
			x := &r.Results[i]
			if d := deviation(rounds(x)); d > 0 {
				all = append(all, d)
			} else if len(x.Relative) == 1 {
				all = append(all, 2*x.Relative[0].Half())
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return quantile(all, 0.75)
}

// medianError is the standard error of the median of a few rounds over that of their mean.
const medianError = 1.2

// deviation is the standard deviation of samples; 0 for fewer than two.
func deviation(x []float64) float64 {
	if len(x) < 2 {
		return 0
	}
	var mean, sum float64
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		sum += (v - mean) * (v - mean)
	}
	return math.Sqrt(sum / float64(len(x)-1))
}

// middle is the median; 0 of nothing.
func middle(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	y := slices.Clone(x)
	slices.Sort(y)
	return quantile(y, 0.5)
}

// Table lists what changed, and every group.
func (c *Comparison) Table() Table {
	t := Table{Title: "Against the older record", Headers: []string{"measured", "time", "least change told", ""},
		Note: "Processor time relative to a baseline beside each sample, new over old."}
	for _, x := range c.Changes {
		word := ""
		switch {
		case x.Slower():
			word = "slower"
		case x.Faster():
			word = "faster"
		}
		if !x.Group && word == "" {
			continue
		}
		name := x.Name
		if x.Group {
			name = "all of " + name
		}
		t.Rows = append(t.Rows, []string{name, fmt.Sprintf("%.3f", x.Ratio), fmt.Sprintf("%.0f %%", 100*x.Least), word})
	}
	return t
}
