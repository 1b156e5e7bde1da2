// SPDX-License-Identifier: Apache-2.0

package report

// Why says of every block of a file why it has its bits: what its tokens are worth, what the planner
// expected of the codings it took and of those it did not, and the price of a byte that decided.
type Why struct {
	// Slope is the price of a byte: the damage that one more would have saved where the budget ran
	// out. 0: every block got the best there is.
	Slope float64 `json:"slope"`
	// Predicted is the planner's sum of damages. kvfile.Result.Predicted is the error to expect.
	Predicted float64    `json:"predicted"`
	Blocks    []WhyBlock `json:"blocks"` // by layer, head, segment
	Parts     []WhyPart  `json:"parts"`  // those that had a choice of levels
}

// WhyBlock is a planning block: up to 32 rows of one (layer, kv_head, segment).
type WhyBlock struct {
	Layer   int      `json:"layer"` // index into the stored layers
	Head    int      `json:"head"`
	Segment int      `json:"segment"`
	Tokens  []uint16 `json:"tokens"` // offsets in the segment
	Rows    int      `json:"rows"`   // stored for them
	// Kind is "free", "sink" (8 bits at least), "exact" (recent window, NaN), "apart" (rows far longer than
	// others), "late" (late sinks: K of 4 bits at least) or "outside" (outside the layer's window: dropped).
	Kind  string `json:"kind"`
	Level string `json:"level"`
	// Weight is the root mean square weight of the tokens; 1 is the head's.
	Weight float64   `json:"weight"`
	Sides  []WhySide `json:"sides"` // K and V, or the rows; none for DROPPED
}

// KindOutside is WhyBlock.Kind of tokens outside the window of their layer, which no later query sees.
const KindOutside = "outside"

// WhySide is one side of a block, with all codings that it could have had.
type WhySide struct {
	Side    string      `json:"side"`
	Coding  string      `json:"coding"`
	Bytes   int64       `json:"bytes"`
	Damage  float64     `json:"damage"`  // predicted: a share of the energy of attention outputs
	Options []WhyOption `json:"options"` // by bytes
}

// WhyOption is a coding that a block was not given.
type WhyOption struct {
	Coding string  `json:"coding"`
	Bytes  int64   `json:"bytes"`
	Damage float64 `json:"damage"`
	// Price is the damage a byte of the difference is worth here, over Slope: a coarser coding was
	// not taken because its price is above 1, a finer one because it is below. 0 where Slope is 0.
	Price float64 `json:"price"`
}

// WhyPart is a (layer, kv_head, segment) and the ways to merge or drop its tokens that are the best
// for some price of a byte.
type WhyPart struct {
	Layer    int          `json:"layer"`
	Head     int          `json:"head"`
	Segment  int          `json:"segment"`
	Variants []WhyVariant `json:"variants"`
	Chosen   int          `json:"chosen"`
}

// WhyVariant is one of them, its rows coded as the price of a byte has it.
type WhyVariant struct {
	Level  string  `json:"level"` // of the tokens that weigh the least
	Share  float64 `json:"share"` // of the tokens that are no sinks
	Bytes  int64   `json:"bytes"`
	Damage float64 `json:"damage"` // of levels and codings
	Levels float64 `json:"levels"` // of it: of merging and dropping
}

// prices returns the predicted damage of a block, and the prices of the next codings.
func (b *WhyBlock) prices() (damage, coarser, finer float64) {
	for _, s := range b.Sides {
		damage += s.Damage
		var below, above *WhyOption
		for i := range s.Options {
			switch o := &s.Options[i]; {
			case o.Bytes < s.Bytes:
				below = o
			case o.Bytes > s.Bytes && above == nil:
				above = o
			}
		}
		if below != nil && (coarser == 0 || below.Price < coarser) {
			coarser = below.Price
		}
		if above != nil {
			finer = max(finer, above.Price)
		}
	}
	return damage, coarser, finer
}
