// SPDX-License-Identifier: Apache-2.0

package archive

// A record of several stages codes levels by halvings of the step. The base has steps 2^r times as
// coarse. Each of the r refinements halves the step: level m of a step is level m/2, rounded towards
// zero, of the step twice as coarse. If refinements are dropped, the rest is about what coding with a
// coarser step would give. A refinement costs what finer levels cost beyond coarser ones, because its
// probabilities are those of the tables, given the coarser level.

// NumGroups is the number of streams of a refinement for each part of the tokens. The steps of tokens
// decide the group, so that sinks and heavy tokens can be kept when light ones are dropped.
const NumGroups = 4

// groupBounds[g] is the most that the class of a token of group g adds to its step, in eighths of an
// octave.
var groupBounds = [NumGroups - 1]int8{-30, -9, 8}

// groupOf returns the group of a class that adds step8 to the step.
func groupOf(step8 int8) int {
	for g, b := range groupBounds {
		if step8 <= b {
			return g
		}
	}
	return NumGroups - 1
}

// refineLevels is the number of coarser magnitudes that have a probability of their own: above them
// both finer ones are equally likely.
const refineLevels = (maxLevel + 1) / 2

// refineTables holds how a level splits into finer ones, and the values that levels stand for.
type refineTables struct {
	left int // refinements that would halve the step
	// bit[k][u] is the probability, in 1/4096, that magnitude u of the step twice as coarse becomes
	// 2u and not 2u+1, in class k of this step. bit[k][0] is the probability of level -1, and that of
	// 1, if the coarser level is 0.
	bit [numClasses][refineLevels]uint16
	// recon[k][u] is the point of reconstruction of magnitude u in class k.
	recon [numClasses][maxLevel + 1]float32
}

// newRefineTables returns the tables of a step. finer are those of half the step; if there are none,
// it is nil, and recon holds the points of reconstruction.
func newRefineTables(t *Tables, recon *[numClasses][maxLevel + 1]float32, finer *refineTables) *refineTables {
	rt := &refineTables{}
	for k := range rt.bit {
		f := &t.Freq[k]
		rt.bit[k][0] = uint16(share(uint32(f[1])/2, uint32(f[0])+uint32(f[1]), probOne/2-1))
		for u := 1; u < refineLevels; u++ {
			rt.bit[k][u] = uint16(share(uint32(f[2*u]), uint32(f[2*u])+uint32(f[2*u+1]), probOne-1))
		}
	}
	if finer == nil {
		rt.recon = *recon
		return rt
	}
	rt.left = finer.left + 1
	for k := range rt.recon {
		fine := min(k+octaveClasses, numClasses-1)
		for u := uint32(1); u <= maxLevel; u++ {
			p := float32(0.5)
			if u < refineLevels {
				p = float32(finer.bit[fine][u]) / probOne
			}
			lo, hi := finer.value(fine, 2*u), finer.value(fine, 2*u+1)
			rt.recon[k][u] = (float32(p*lo) + float32((1-p)*hi)) / 2
		}
	}
	return rt
}

// octaveClasses is the difference between the class at half the step and the class at the step.
const octaveClasses = 4

// coarser returns the tables of a step twice as coarse: sums of frequencies, as levels are halved
// towards zero.
func (t *Tables) coarser() *Tables {
	c := &Tables{Prior: t.Prior}
	for k := range c.Freq {
		if k+octaveClasses >= numClasses { // the tables hold no class above: take its own
			c.Freq[k], c.MeanAbs[k] = t.Freq[k], t.MeanAbs[k]
			continue
		}
		f := &t.Freq[k+octaveClasses]
		var fine, coarse uint64
		for m, n := range f[:maxLevel+1] {
			c.Freq[k][m/2] += n
			fine, coarse = fine+uint64(m)*uint64(n), coarse+uint64(m/2)*uint64(n)
		}
		c.Freq[k][maxLevel+1] = f[maxLevel+1]
		c.MeanAbs[k] = uint16(max(1, uint64(t.MeanAbs[k+octaveClasses])*coarse/max(fine, 1)))
	}
	return c
}

// middle returns the distance, in steps, from a level to the middle of the levels that r refinements
// make of it.
func middle(r int) float32 { return 0.5 - 0.5/float32(int(1)<<r) }

// share returns part/all in 1/4096, rounded and limited to 1 to most; a half if all is 0.
func share(part, all, most uint32) uint32 {
	if all == 0 {
		return min(probOne/2, most)
	}
	return min(max((part*probOne+all/2)/all, 1), most)
}

// value returns the magnitude that level u of class k stands for.
func (rt *refineTables) value(k int, u uint32) float32 {
	if u <= maxLevel {
		return rt.recon[k][u]
	}
	return float32(u) + middle(rt.left)
}

// interval returns the interval of the finer level 2u + bit, given the coarser level u.
func (rt *refineTables) interval(k int, u, bit uint32) interval {
	p := uint32(probOne / 2)
	if u < refineLevels {
		p = uint32(rt.bit[k][u])
	}
	if bit == 0 {
		return newInterval(0, p)
	}
	return newInterval(p, probOne-p)
}

// fromZero returns the interval of level -1, 0 or 1 where the coarser level is 0.
func (rt *refineTables) fromZero(k, level int) interval {
	p := uint32(rt.bit[k][0])
	switch {
	case level < 0:
		return newInterval(0, p)
	case level > 0:
		return newInterval(probOne-p, p)
	}
	return newInterval(p, probOne-2*p)
}

// refine reads a finer level with state s, given the coarser one.
func (rt *refineTables) refine(d *ransDecoder, s, k int, level int32) int32 {
	slot := d.x[s] & (probOne - 1)
	if level == 0 {
		p := uint32(rt.bit[k][0])
		switch {
		case slot < p:
			d.take(s, 0, p, probBits)
			return -1
		case slot >= probOne-p:
			d.take(s, probOne-p, p, probBits)
			return 1
		}
		d.take(s, p, probOne-2*p, probBits)
		return 0
	}
	u := uint32(max(level, -level))
	p := uint32(probOne / 2)
	if u < refineLevels {
		p = uint32(rt.bit[k][u])
	}
	bit := int32(0)
	if slot < p {
		d.take(s, 0, p, probBits)
	} else {
		bit = 1
		d.take(s, p, probOne-p, probBits)
	}
	if level < 0 {
		return max(2*level-bit, -maxMagnitude)
	}
	return min(2*level+bit, maxMagnitude)
}

// stage is a lane at a step that some refinements would halve further: the scales of its components
// for every step of its tokens.
type stage struct {
	*coder
	l     *lane
	left  int // refinements that would halve the step
	known []*stageScales
}

// stageScales holds the scales of rows of one step at a stage.
type stageScales struct {
	step8 int16
	scale []int16
	log   int // 8*log2 of what is expected of a row, the prior included
}

func (s *stage) scales(step8 int16) *stageScales {
	for _, x := range s.known {
		if x.step8 == step8 {
			return x
		}
	}
	x := &stageScales{step8: step8, scale: make([]int16, s.l.dim)}
	expected := uint64(s.Prior)
	for i, d := range s.l.std8 {
		x.scale[i] = d - step8 - int16(8*s.left)
		if coded(int(x.scale[i])) {
			expected += s.expectation(int(x.scale[i]))
		}
	}
	x.log = log8(expected)
	s.known = append(s.known, x)
	return x
}

// shift returns the correction of the scales of a row, as rowState does, from the levels of this
// stage.
func (s *stage) shift(of *stageScales, levels []int32) int {
	seen := uint64(s.Prior)
	for _, m := range levels {
		seen += uint64(max(m, -m)) << 12
	}
	return clampShift(log8(seen) - of.log)
}

// class returns the class of a component at a scale; those above all tables share the last.
func refineClass(scale8 int) int { return min(max(scale8-classBase, 0)>>1, numClasses-1) }

// values sets out to what the levels of a row stand for, in steps of the finest stage.
func (s *stage) values(out []float32, of *stageScales, levels []int32) {
	shift := s.shift(of, levels)
	unit := float32(int(1) << s.left)
	for i, m := range levels {
		if m == 0 {
			out[i] = 0
			continue
		}
		v := unit * s.refined.value(refineClass(int(of.scale[i])+shift), uint32(max(m, -m)))
		if m < 0 {
			v = -v
		}
		out[i] = v
	}
}
