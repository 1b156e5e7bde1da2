// SPDX-License-Identifier: Apache-2.0

package input

import (
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// A row stands apart from its head where its energy is apartRatio times the median: its values are 64 times those
// of others. Hot form keeps it exactly, in a block of its own: the rows of a block share the range of their
// scales (quant.ScaleLog8), and its errors, which count as they are, would take the bits of all others.
const apartRatio = 1 << 12

// ApartLimit returns the energy from which on rows stand apart from others of these energies, or +Inf
// if none does.
func ApartLimit(energies []float64) float64 {
	const few = 4
	var most float64
	for _, e := range energies {
		most = max(most, e)
	}
	ordinary := 0
	for _, e := range energies {
		if e > most/apartRatio {
			ordinary++
		}
	}
	if len(energies) < few || 2*ordinary > len(energies) {
		return math.Inf(1)
	}
	sorted := slices.DeleteFunc(slices.Clone(energies), func(e float64) bool { return !(e > 0) })
	if len(sorted) == 0 {
		return math.Inf(1)
	}
	slices.Sort(sorted)
	return apartRatio * sorted[(len(sorted)-1)/2]
}

// calmed shortens the rows that stand apart, in place, to 8 times the length of the median, and reports whether
// there were any: one row of 10^8 draws all attention, or makes all of the output, and then the errors
// of the others seem to cost nothing.
func calmed(x quant.Rows) bool {
	energies := make([]float64, x.Len())
	for r := range energies {
		energies[r] = Energy(x.Row(r))
	}
	limit := ApartLimit(energies)
	if math.IsInf(limit, 1) {
		return false
	}
	found := false
	for r, e := range energies {
		if e < limit {
			continue
		}
		found = true
		const room = 8 // short of standing apart
		f := float32(math.Sqrt(limit/e) / room)
		for i := range x.Row(r) {
			x.Row(r)[i] *= f
		}
	}
	return found
}
