// SPDX-License-Identifier: Apache-2.0

package damage

import (
	"cmp"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/internal/input"
	"github.com/kvist-project/kvist/quant"
)

// Use says by what the errors of heads were priced. Rows without attention, and lossless files, have no
// heads to price.
type Use struct {
	Heads   int // heads that were priced
	Queries int // of them, on the capture's own last queries
	Profile int // by the steps of a profile
	// StandIn counts heads in which K stands in for the queries: without its mean, rows far longer than the
	// others held to a length. Reason says why, for the first of them.
	StandIn int
	Reason  string
}

// PricedBy says by what the errors of a head were priced.
type PricedBy uint8

const (
	byNothing PricedBy = iota // rows without attention
	byQueries
	ByProfile
	// K stands in for the queries.
	byKeysAlone
	byKeysFew
	byKeysDim
	ByKeysBad
)

// whyKeys says why K stands in for the queries.
var whyKeys = map[PricedBy]string{
	byKeysAlone: "the capture holds no queries",
	byKeysFew:   "the capture is too short to measure on its queries",
	byKeysDim:   "errors of rows of this length are not measured",
	ByKeysBad:   "the last queries are all NaN, Inf, zero or beyond what scores can be",
}

func (u *Use) Add(stats []Head) {
	for i := range stats {
		by := stats[i].By
		if by == byNothing {
			continue
		}
		u.Heads++
		switch by {
		case byQueries:
			u.Queries++
		case ByProfile:
			u.Profile++
		default:
			u.StandIn++
			u.Reason = cmp.Or(u.Reason, whyKeys[by])
		}
	}
}

// canProbe says by what a head of the layer is priced, before its queries were looked at.
func (c *Pricer) canProbe(l *input.Layer, past, sinks int) PricedBy {
	c3 := probeCoding(3)
	switch {
	case !l.HasQ:
		return byKeysAlone
	case past <= sinks:
		return byKeysFew
	case c3.CheckDim(l.K.Dim()) != nil || c3.CheckDim(l.V.Dim()) != nil:
		return byKeysDim
	}
	return byQueries
}

// Rows far longer than the others, and what all rows of a head share, say nothing about queries: with two
// keys of 100 times the length in every head, or a bias of 16 deviations on a channel, the errors of V in an
// archive were 3 to 10 times as large. So energies count up to mostEnergy times their median, and K without
// its mean.
const mostEnergy = 4

// hotBend is how much more than the formula says the errors of K cost in hot form, whose codings are so
// coarse that they bend the softmax. Probes of the test model show 2 to 4 beyond its first layer. Steps of
// archives are made of the cost of small errors.
const hotBend = 2

// Errors of a coding go with the length of rows, means included, and so do their prices: but a mean counts
// for no more than mostMean times the energy of what is left. In the test model it is up to 8 times.
const mostMean = 8

// standIn fills in what was not measured on queries. Attention is taken as even and queries as long as
// keys: then V costs a^2 |dv|^2 and K costs a^2 |v - mean v|^2 |q|^2 |dk|^2 / head_dim^2, with a = 1/tokens, those that a query
// sees. Another scale of the layer takes the place of 1/sqrt(head_dim).
func (c *Pricer) standIn(l *input.Layer, rows *input.HeadRows, st *Head) error {
	n := float64(max(1, l.Tokens))
	if w := c.Geo.WindowOf(l.Number); w > 0 {
		n = min(n, float64(w))
	}
	if !(st.QueryEnergy > 0) {
		mean, median, err := c.keyEnergy(l, rows)
		if err != nil {
			return err
		}
		st.QueryEnergy = mean
		if _, whole := heldMean(rows.KEnergy); !c.Mean && whole > mostMean*median {
			st.KShare = mostMean * median / whole
		}
	}
	if !(st.OutEnergy > 0) {
		st.OutEnergy, _ = heldMean(rows.VEnergy)
	}
	if !(st.VSensitivity > 0) {
		st.VSensitivity = 1 / (n * n)
	}
	if !(st.KSensitivity > 0) {
		st.KSensitivity = st.vDev * st.QueryEnergy / c.Geo.ScoreDivisor(l.Number) / (n * n)
		if !c.Small {
			st.KSensitivity *= hotBend
		}
	}
	return nil
}

// keyEnergy returns the squared length of queries that K stands in for, and the median of that of its rows.
// What rows have in common may be that of before or of after the rotary embedding: a bias of the projection
// is turned with the rows, and so is no mean of what is stored. The one that leaves less counts.
func (c *Pricer) keyEnergy(l *input.Layer, rows *input.HeadRows) (mean, median float64, err error) {
	mean, median = heldMean(deviations(rows.Keys, rows.KEnergy))
	turns := archive.NewRope(c.Geo.RopeOf(l.Number))
	if len(turns.Freqs) == 0 {
		return mean, median, nil
	}
	var still []quant.Rows
	first := rows.First
	for _, k := range rows.Keys {
		k.Data = slices.Clone(k.Data)
		pos := make([]int64, k.Len())
		if err := c.Positions(first, pos); err != nil {
			return 0, 0, err
		}
		turns.Undo(k.Data, k.Dim, pos)
		still, first = append(still, k), first+k.Len()
	}
	if m, d := heldMean(deviations(still, rows.KEnergy)); m < mean {
		mean, median = m, d
	}
	return mean, median, nil
}

// heldMean returns the mean of energies that are held to mostEnergy times their median, and the median.
// Zeros, which also rows that are not finite are, have no say in it.
func heldMean(energies []float64) (mean, median float64) {
	some := slices.DeleteFunc(slices.Clone(energies), func(e float64) bool { return !(e > 0) })
	if len(some) == 0 {
		return 0, 0
	}
	slices.Sort(some)
	median = some[len(some)/2]
	for _, e := range energies {
		mean += min(e, mostEnergy*median)
	}
	return mean / float64(len(energies)), median
}

// deviations returns the squared distances of rows of these energies from their mean, into which long rows
// go with the length that heldMean holds them to. Rows of zeros stay at zero.
func deviations(rows []quant.Rows, energies []float64) []float64 {
	_, median := heldMean(energies)
	if median == 0 {
		return energies
	}
	mean, at, n := make([]float64, rows[0].Dim), 0, 0.0
	for _, x := range rows {
		for r := range x.Len() {
			e := energies[at]
			at++
			if e == 0 {
				continue
			}
			share := min(1, math.Sqrt(mostEnergy*median/e))
			for i, v := range x.Row(r) {
				mean[i] += share * float64(v)
			}
			n++
		}
	}
	for i := range mean {
		mean[i] /= n
	}
	dev := make([]float64, len(energies))
	at = 0
	for _, x := range rows {
		for r := range x.Len() {
			if energies[at] > 0 {
				for i, v := range x.Row(r) {
					d := float64(v) - mean[i]
					dev[at] += float64(d * d)
				}
			}
			at++
		}
	}
	return dev
}
