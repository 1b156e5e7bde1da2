// SPDX-License-Identifier: Apache-2.0

package trellis

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// The trellis.
const (
	// MaxWidth is the largest number of bits of a component.
	MaxWidth = 6
	// States is the number of states: the last three bits of the path.
	States = 8
)

// Subset returns the subset of levels, 0 to 3, that path bit u selects in a state: twice the parity of
// the taps 13 (octal) over the path, plus that of the taps 4.
func Subset(state, u int) int {
	return 2*((u^state^state>>2)&1) + state>>1&1
}

// Next returns the state behind path bit u. Bit 0 of a state is the newest bit of the path.
func Next(state, u int) int { return (state<<1 | u) & (States - 1) }

// Level returns the value that a code of the given width stands for in a state.
func Level(width, state int, code uint8) float32 {
	u, member := int(code&1), int(code>>1)
	return Levels(width)[4*member+Subset(state, u)]
}

func checkWidths(widths []uint8, n int) error {
	if len(widths) != n {
		return fmt.Errorf("kvist/trellis: %d widths for %d components: %w", len(widths), n, quant.ErrShape)
	}
	for i, b := range widths {
		if b > MaxWidth {
			return fmt.Errorf("kvist/trellis: width %d of component %d, want at most %d: %w", b, i, MaxWidth,
				quant.ErrUnsupported)
		}
	}
	return nil
}

// Encode writes the codes of the row x with the least squared error: x[i] takes widths[i] bits, 0 to
// MaxWidth. The path starts in state 0 and may end anywhere. Components of width 0 take no part in it;
// their code is 0.
//
// All of len(codes), len(x) and len(widths) are equal. Values are in standard deviations: the levels are
// those of a Gaussian of unit variance.
//
// Costs are sums of float32 squares in the order of the components, each square and each sum rounded. At
// a tie the lower member of a subset wins, and the path from the lower state. So codes are the same on
// every machine.
//
// Errors: quant.ErrShape; quant.ErrUnsupported for a width; quant.ErrRange for a value that is not
// finite, or whose square is not. codes is then undefined.
//
// Source: Marcellin and Fischer, Trellis coded quantization of memoryless and Gauss-Markov sources
// (1990); Ungerboeck's code with 8 states in its feedforward form.
func Encode(codes []uint8, x []float32, widths []uint8) error {
	if len(codes) != len(x) {
		return fmt.Errorf("kvist/trellis: %d codes for %d components: %w", len(codes), len(x), quant.ErrShape)
	}
	if err := checkWidths(widths, len(x)); err != nil {
		return err
	}
	inf := float32(math.Inf(1))
	cost := [States]float32{0, inf, inf, inf, inf, inf, inf, inf}
	from := make([][States]uint8, len(x)) // 1 where the path came from the upper state
	members := make([][4]uint8, len(x))   // of each subset, the level nearest to x
	for i, v := range x {
		if widths[i] == 0 {
			continue
		}
		var dist [4]float32
		dist, members[i] = nearest(Levels(int(widths[i])), v)
		var next [States]float32
		for s := range States {
			u, low, high := s&1, s>>1, s>>1|4
			a, b := cost[low]+dist[Subset(low, u)], cost[high]+dist[Subset(high, u)]
			next[s] = a
			if b < a {
				next[s], from[i][s] = b, 1
			}
		}
		cost = next
	}
	state := 0
	for s, c := range cost {
		if c < cost[state] {
			state = s
		}
	}
	if c := cost[state]; !(c <= math.MaxFloat32) {
		return fmt.Errorf("kvist/trellis: encode: a value is not finite or too large: %w", quant.ErrRange)
	}
	for i := len(x) - 1; i >= 0; i-- {
		if codes[i] = 0; widths[i] == 0 {
			continue
		}
		u, before := state&1, state>>1|int(from[i][state])<<2
		codes[i] = members[i][Subset(before, u)]<<1 | uint8(u)
		state = before
	}
	return nil
}

// nearest returns, for each subset, the squared distance from v to the nearest level, and which member
// of the subset that level is.
func nearest(levels []float32, v float32) (dist [4]float32, member [4]uint8) {
	for k := range dist {
		dist[k] = float32(math.Inf(1))
		for m := 0; 4*m < len(levels); m++ {
			d := v - levels[4*m+k]
			if d := float32(d * d); d < dist[k] {
				dist[k], member[k] = d, uint8(m)
			}
		}
	}
	return dist, member
}

// Decode writes the values that codes stand for, 0 for components of width 0.
//
// Errors: quant.ErrShape; quant.ErrUnsupported for a width; quant.ErrCorrupt for a code that its width
// does not have.
func Decode(x []float32, codes, widths []uint8) error {
	if len(codes) != len(x) {
		return fmt.Errorf("kvist/trellis: %d codes for %d components: %w", len(codes), len(x), quant.ErrShape)
	}
	if err := checkWidths(widths, len(x)); err != nil {
		return err
	}
	state := 0
	for i, c := range codes {
		b := int(widths[i])
		if int(c)>>b != 0 {
			return fmt.Errorf("kvist/trellis: code %d of component %d has more than %d bits: %w", c, i, b,
				quant.ErrCorrupt)
		}
		if x[i] = 0; b != 0 {
			x[i] = Level(b, state, c)
			state = Next(state, int(c&1))
		}
	}
	return nil
}
