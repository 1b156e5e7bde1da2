// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
	"slices"
)

// Concentration says on how many rows a signal is gathered.
type Concentration struct {
	Rows      int
	Effective float64 // 1 / sum p^2 of the signal taken as a distribution p: in [1, rows]
	Entropy   float64 // of p, nats
	Top       int     // how many rows TopShare is of: CollapseLimits.Top, at most Rows
	TopShare  float64 // sum of the Top largest p
	// Collapsed: the signal tells next to nothing about most rows. Reason says why, with numbers.
	Collapsed bool
	Reason    string
}

// CollapseLimits says what counts as collapsed. The zero value is the default.
type CollapseLimits struct {
	Top          int     // 0: 4
	MaxTopShare  float64 // share of the Top rows from which on it is collapsed. 0: 0.95
	MinEffective float64 // least effective number of rows. 0: 3
	MinRows      int     // fewer rows are not judged. 0: 32
}

// Concentrate measures how far a signal [rows] is gathered on few rows, and judges whether it
// has collapsed: attention that is all on a few sinks says nothing about the others, and a plan
// made from it would starve them. The caller then falls back on another signal and says so. Leave
// out the first tokens to ask whether sinks hide a signal that is there.
//
// Errors: *ValueError wrapping quant.ErrRange for values that are negative, NaN or infinite.
func Concentrate(x []float64, lim CollapseLimits) (Concentration, error) {
	if err := checkSignal("signal", x); err != nil {
		return Concentration{}, err
	}
	lim = lim.withDefaults()
	c := Concentration{Rows: len(x), Top: min(lim.Top, len(x))}
	m := largest(x)
	if m == 0 {
		if c.Rows >= lim.MinRows {
			c.Collapsed, c.Reason = true, fmt.Sprintf("zero on all %d rows", c.Rows)
		}
		return c, nil
	}
	p := make([]float64, len(x))
	var sum float64
	for i, v := range x {
		p[i] = v / m
		sum += p[i]
	}
	var squares float64
	for i := range p {
		p[i] /= sum
		squares += p[i] * p[i]
		if p[i] > 0 {
			c.Entropy -= p[i] * math.Log(p[i])
		}
	}
	c.Effective = 1 / squares
	for _, v := range topOf(p, c.Top) {
		c.TopShare += v
	}
	switch {
	case c.Rows < lim.MinRows:
	case c.TopShare >= lim.MaxTopShare:
		c.Collapsed = true
		c.Reason = fmt.Sprintf("%.1f %% on %d of %d rows, limit %.1f %%", 100*c.TopShare, c.Top,
			c.Rows, 100*lim.MaxTopShare)
	case c.Effective < lim.MinEffective:
		c.Collapsed = true
		c.Reason = fmt.Sprintf("gathered on %.2f of %d rows, limit %.2f", c.Effective, c.Rows,
			lim.MinEffective)
	}
	return c, nil
}

// topOf returns the n largest values, ascending. It may change the order of p.
func topOf(p []float64, n int) []float64 {
	if n == 0 || n > 16 {
		slices.Sort(p)
		return p[len(p)-n:]
	}
	top := slices.Clone(p[:n])
	slices.Sort(top)
	for _, v := range p[n:] {
		if v <= top[0] {
			continue
		}
		i := 1
		for ; i < n && top[i] < v; i++ {
			top[i-1] = top[i]
		}
		top[i-1] = v
	}
	return top
}

func (l CollapseLimits) withDefaults() CollapseLimits {
	if l.Top <= 0 {
		l.Top = 4
	}
	if !(l.MaxTopShare > 0) {
		l.MaxTopShare = 0.95
	}
	if !(l.MinEffective > 0) {
		l.MinEffective = 3
	}
	if l.MinRows <= 0 {
		l.MinRows = 32
	}
	return l
}
