// SPDX-License-Identifier: Apache-2.0

package segment

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// LevelSpec is a way to store the tokens of a part that weigh the least: share of the tokens that
// are no sinks goes to level.
type LevelSpec struct {
	Level quant.Level
	Share float64
}

// levelShares are the shares of a part's tokens that a level may take. The last leaves sinks and
// window only.
var levelShares = []float64{0.25, 0.5, 0.75, 0.875, 0.9375, 1}

// Runs of adjacent tokens that CHUNKS merges to one row hold at most chunkTokens; SUMMARY merges
// what it takes of a segment, whatever was kept between, to rows of about summaryTokens.
const (
	chunkTokens   = 4
	summaryTokens = 32
)

// LevelsOf lists the variants beyond FULL that a config allows.
func LevelsOf(levels []quant.Level) (specs []LevelSpec) {
	for _, l := range levels {
		if l == quant.Full {
			continue
		}
		for _, s := range levelShares {
			specs = append(specs, LevelSpec{l, s})
		}
	}
	return specs
}

// levelVariant cuts a part so that the tokens that weigh the least go to a level. free is sorted
// by falling weight. false: nothing would be merged or dropped.
func (c *Builder) levelVariant(h *Head, r *Rows, spec LevelSpec,
	free []uint16) (v variant, ok bool) {
	n := int(math.Round(spec.Share * float64(len(free))))
	high, low := free[:len(free)-n], slices.Clone(free[len(free)-n:])
	if n == 0 {
		return v, false
	}
	v.Spec = spec
	slices.Sort(low)
	if spec.Level == quant.Dropped {
		v.Cells = append(c.weightCells(h, r, high), Cell{Level: quant.Dropped, Tokens: low})
		v.bytes = memberBytes(n, len(free)-n)
		return v, true
	}
	var runs [][]uint16
	if spec.Level == quant.Chunks {
		var alone []uint16
		runs, alone = adjacentRuns(low)
		if len(alone) > 0 {
			high = append(slices.Clone(high), alone...)
			sortByWeight(high, func(t uint16) float64 { return h.weight(r.first + int(t)) })
		}
	} else {
		runs = split(low, summaryTokens)
	}
	if len(runs) == 0 {
		return v, false
	}
	v.Cells = append(c.weightCells(h, r, high), c.mergedCells(h, r, spec.Level, runs)...)
	merged := len(free) - len(high)
	v.bytes = memberBytes(merged, len(high)) + memberBytes(len(runs), merged-len(runs))
	return v, true
}

// memberBytes is what it takes to say which of two sets each of a+b tokens is in.
func memberBytes(a, b int) int64 {
	var bits float64
	for _, x := range []int{a, b} {
		if x > 0 {
			bits += float64(x) * math.Log2(float64(a+b)/float64(x))
		}
	}
	return int64(math.Ceil(bits / 8))
}

// adjacentRuns returns the runs of neighbours in a sorted list, at most chunkTokens long, and the
// tokens that have no neighbour.
func adjacentRuns(sorted []uint16) (runs [][]uint16, alone []uint16) {
	for i := 0; i < len(sorted); {
		j := i + 1
		for j < len(sorted) && sorted[j] == sorted[j-1]+1 {
			j++
		}
		if j == i+1 {
			alone = append(alone, sorted[i])
		} else {
			runs = append(runs, split(sorted[i:j], chunkTokens)...)
		}
		i = j
	}
	return runs, alone
}

// split cuts a list into pieces of at most n, as even as can be.
func split(tokens []uint16, n int) (pieces [][]uint16) {
	k := (len(tokens) + n - 1) / n
	for i := range k {
		pieces = append(pieces, tokens[i*len(tokens)/k:(i+1)*len(tokens)/k])
	}
	return pieces
}

// mergedCells sorts merged rows by weight into blocks.
func (c *Builder) mergedCells(h *Head, r *Rows, level quant.Level,
	runs [][]uint16) (cells []Cell) {
	type row struct {
		tokens       []uint16
		weight, k, v float64
		means        [2][]float32
	}
	rows := make([]row, len(runs))
	kDim, vDim := r.K.Dim, r.V.Dim
	all := make([]float32, len(runs)*(kDim+vDim))
	for i, run := range runs {
		var sum float64
		for _, t := range run {
			sum += h.weight(r.first + int(t))
		}
		k := all[:kDim:kDim]
		v := all[kDim : kDim+vDim : kDim+vDim]
		all = all[kDim+vDim:]
		weights := h.runWeights(r, run)
		h.meanRow(k, r.K, run, weights)
		h.meanRow(v, r.V, run, weights)
		rows[i] = row{tokens: run, weight: sum, means: [2][]float32{k, v}}
		kEnergy := h.st.KEnergy(k, nil)
		if r.Mean.Stored != nil {
			kEnergy = h.st.KEnergy(k, r.Mean)
		}
		rows[i].k, rows[i].v = h.rowDamage(sum, len(run), kEnergy, input.Energy(v), c.unseen())
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return 0
	})
	for block := range slices.Chunk(rows, planRows) {
		block = slices.Clone(block)
		slices.SortFunc(block, func(a, b row) int { return int(a.tokens[0]) - int(b.tokens[0]) })
		b := Cell{Level: level, Centered: r.Mean.Stored != nil}
		b.means[0], b.means[1] = make([]float32, 0, len(block)*kDim), make([]float32, 0, len(block)*vDim)
		for _, x := range block {
			for i := range b.means {
				b.means[i] = append(b.means[i], x.means[i]...)
			}
			b.Tokens = append(b.Tokens, x.tokens...)
			b.Counts = append(b.Counts, uint16(len(x.tokens)))
			b.KDamage, b.VDamage = b.KDamage+x.k, b.VDamage+x.v
		}
		cells = append(cells, b)
	}
	return cells
}

// runWeights returns the share of each token in the mean of a run, until it is called again.
func (h *Head) runWeights(r *Rows, run []uint16) []float64 {
	h.shares = slices.Grow(h.shares[:0], len(run))[:len(run)]
	w := h.shares
	var sum float64
	for i, t := range run {
		w[i] = h.weight(r.first + int(t))
		sum += w[i]
	}
	for i := range w {
		if sum > 0 {
			w[i] /= sum
		} else {
			w[i] = 1 / float64(len(run))
		}
	}
	return w
}

// meanRow writes the weighted mean of rows. Sums go in the order of the run and are not fused, so
// that every machine gets the same row.
func (h *Head) meanRow(dst []float32, x quant.Rows, run []uint16, weights []float64) {
	h.sums = slices.Grow(h.sums[:0], len(dst))[:len(dst)]
	sum := h.sums
	clear(sum)
	for i, t := range run {
		w, row := weights[i], x.Row(int(t))[:len(sum)]
		for d := range sum {
			sum[d] += float64(w * float64(row[d]))
		}
	}
	for d, v := range sum {
		dst[d] = float32(v)
	}
}

// levelDamage is what merging and dropping of a variant costs, on the scale of coding damage. It is
// the damage that the head's own queries were seen to suffer (ratio puts the estimate on that
// scale), and for queries unlike those seen what every token on its own would cost.
func (c *Builder) levelDamage(h *Head, r *Rows, v *variant, ratio float64) float64 {
	past, alone := c.levelTerms(h, r, v)
	seen := (1 - c.Unseen) * ratio * h.st.VSensitivity * past
	return h.share / h.st.OutEnergy * h.vFactor * (seen + c.Unseen*alone/float64(h.limit-h.outside))
}

// levelTerms estimates the damage of a variant's merges and drops in units of the squared error of V
// in a row of weight 1.
//
// Dropping tokens moves the output by sum a_t (v_t - out), one coherent error over all of them, and
// by what their attention varies around its mean. A row merged by weights keeps sum a_t v_t as it
// was on average: what is left is how attention within the run varies, and what the score of the
// mean key does to it.
func (c *Builder) levelTerms(h *Head, r *Rows, v *variant) (past, alone float64) {
	dim, kDim := len(h.st.MeanOut), r.K.Dim
	sum, dev := make([]float64, dim), h.deviations(r)
	for ci := range v.Cells {
		b := &v.Cells[ci]
		switch b.Level {
		case quant.Dropped:
			for _, t := range b.Tokens {
				w := h.weight(r.first + int(t))
				row, out := r.V.Row(int(t))[:len(sum)], h.st.MeanOut[:len(sum)]
				for d := range sum {
					sum[d] += float64(w * (float64(row[d]) - out[d]))
				}
				past += float64(w * w * dev[t])
				alone += dev[t]
			}
		case quant.Chunks, quant.Summary:
			at := 0
			for i, n := range b.Counts {
				run := b.Tokens[at : at+int(n)]
				at += int(n)
				k, mean := b.means[0][i*kDim:(i+1)*kDim], b.means[1][i*dim:(i+1)*dim]
				for _, t := range run {
					x := h.mergeCost(r.K.Row(int(t)), k, r.V.Row(int(t)), mean, dev[t])
					w := h.weight(r.first + int(t))
					past += float64(w * w * x)
					alone += x
				}
			}
		}
	}
	for _, s := range sum {
		past += s * s
	}
	return past, alone
}

// mergeCost is the squared error of V that stands for a token that became part of a merged row: its
// V is another, and its score, off by q.dk times the layer's scale, takes its V away as far as that goes. dev is the
// squared distance of its V from the mean output.
func (h *Head) mergeCost(k, kMean, v, vMean []float32, dev float64) float64 {
	return input.Distance(v, vMean) + min(1, h.st.ScoreEnergy(k, kMean)/h.divisor)*dev
}

// deviations returns the squared distances of the rows of V from the mean output.
func (h *Head) deviations(r *Rows) []float64 {
	if r.dev == nil {
		r.dev = make([]float64, r.n)
		for t := range r.dev {
			var a, b float64
			row := r.V.Row(t)
			out := h.st.MeanOut[:len(row)]
			for d, x := range row {
				diff := float64(x) - out[d]
				a, b = b, a+float64(diff*diff)
			}
			r.dev[t] = a + b
		}
	}
	return r.dev
}

// zeros are what is put between parts of a buffer, each of which starts on a multiple of 64 bytes.
var zeros [64]byte

// rowsOf returns the rows of a cell, [rows * dim].
func (h *Head) RowsOf(r *Rows, b *Cell, x quant.Rows, side int) []float32 {
	if b.means[side] != nil {
		return b.means[side]
	}
	out := make([]float32, b.Rows()*x.Dim)
	at := 0
	for i := range b.Rows() {
		n := 1
		if b.Counts != nil {
			n = int(b.Counts[i])
		}
		dst := out[i*x.Dim : (i+1)*x.Dim]
		if run := b.Tokens[at : at+n]; n == 1 {
			copy(dst, x.Row(int(run[0])))
		} else {
			h.meanRow(dst, x, run, h.runWeights(r, run))
		}
		at += n
	}
	return out
}
