// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"math"
)

// top keeps the best candidates. It collects twice as many as wanted, then drops the worse half, so that most
// candidates cost a comparison.
type top struct {
	want      int
	threshold float32 // candidates must be above
	all       []candidate
}

func (t *top) reset(want int) {
	t.want, t.threshold, t.all = want, float32(math.Inf(-1)), t.all[:0]
}

func (t *top) add(c candidate) {
	if !(c.key > t.threshold) {
		return
	}
	t.all = append(t.all, c)
	if len(t.all) >= 2*t.want+32 {
		t.cut()
	}
}

// cut drops all but the best. Rows come in order, so that the first of equal keys stay.
func (t *top) cut() {
	if len(t.all) <= t.want {
		return
	}
	selectBest(t.all, t.want)
	t.all = t.all[:t.want]
	worst := t.all[0].key
	for _, c := range t.all {
		worst = min(worst, c.key)
	}
	t.threshold = worst
}

// take returns the best, in any order.
func (t *top) take() []candidate {
	t.cut()
	return t.all
}

// above reports whether a is better than b; keys are numbers here.
func above(a, b candidate) bool { return a.key > b.key || a.key == b.key && a.row < b.row }

// selectBest moves the best n candidates to the front, in any order.
func selectBest(c []candidate, n int) {
	for len(c) > 1 && n > 0 && n < len(c) {
		pivot := middle(c[0], c[len(c)/2], c[len(c)-1])
		lo, hi := 0, len(c)-1
		for lo <= hi {
			for above(c[lo], pivot) {
				lo++
			}
			for above(pivot, c[hi]) {
				hi--
			}
			if lo <= hi {
				c[lo], c[hi] = c[hi], c[lo]
				lo++
				hi--
			}
		}
		switch {
		case n <= hi:
			c = c[:hi+1]
		case n >= lo:
			c, n = c[lo:], n-lo
		default:
			return
		}
	}
}

func middle(a, b, c candidate) candidate {
	if above(b, a) {
		a, b = b, a
	}
	if above(c, b) {
		b = c
	}
	if above(b, a) {
		b = a
	}
	return b
}
