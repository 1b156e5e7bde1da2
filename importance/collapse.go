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
	TopShare  float64 // sum of the 4 largest p
	// Collapsed is true where the signal tells next to nothing about most rows. Reason says why,
	// with numbers.
	Collapsed bool
	Reason    string
}

// A signal has collapsed when its largest topRows values hold maxTopShare of it, or its effective
// number of rows is below minEffective. Fewer rows than minJudged are not judged.
const (
	topRows      = 4
	maxTopShare  = 0.95
	minEffective = 3
	minJudged    = 32
)

// Concentrate measures how far a signal [rows] is gathered on few rows, and judges whether it
// has collapsed: attention that is all on a few sinks says nothing about the others, and a plan
// made from it would starve them. The caller then falls back on another signal and says so. Leave
// out the first tokens to ask whether sinks hide a signal that is there.
//
// Errors: *ValueError wrapping quant.ErrRange for values that are negative, NaN or infinite.
func Concentrate(x []float64) (Concentration, error) {
	if err := checkSignal("signal", x); err != nil {
		return Concentration{}, err
	}
	c := Concentration{Rows: len(x)}
	top := min(topRows, len(x))
	m := largest(x)
	if m == 0 {
		if c.Rows >= minJudged {
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
	for _, v := range topOf(p, top) {
		c.TopShare += v
	}
	switch {
	case c.Rows < minJudged:
	case c.TopShare >= maxTopShare:
		c.Collapsed = true
		c.Reason = fmt.Sprintf("%.1f %% on %d of %d rows, limit %.1f %%", 100*c.TopShare, top,
			c.Rows, 100*maxTopShare)
	case c.Effective < minEffective:
		c.Collapsed = true
		c.Reason = fmt.Sprintf("gathered on %.2f of %d rows, limit %.2f", c.Effective, c.Rows,
			float64(minEffective))
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
