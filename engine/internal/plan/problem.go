// SPDX-License-Identifier: Apache-2.0

package plan

// Option is one way to store an item.
type Option struct {
	Bytes  int64
	Damage float64
}

// Class is a menu that many items share. An item that takes option o takes Options[o].Bytes and
// does Options[o].Damage times its sensitivity. A class has at most 255 options.
type Class struct {
	Options []Option
}

// Variant is one of several ways to store a group of tokens. It has a range of items of its own.
// Bytes and Damage are what it costs beside them, whatever their codings are: Damage is that of the
// tokens that it merges or drops.
type Variant struct {
	First, Items int // range of items of the problem
	Bytes        int64
	Damage       float64
}

// Pick states that a variant is the best one for multipliers from Slope up to the Slope of the pick
// before it.
type Pick struct {
	Slope   float64 // damage per byte
	Variant int
}

// Group is a set of tokens and the variants it can be stored in.
type Group struct {
	Variants []Variant
	Picks    []Pick // as Problem.Picks returns them; not looked at for a single variant
}

// Problem is what a Solver decides. Its items are sides (K or V) of blocks. A coding has the same
// relative error in all blocks of a head, so that items share the few menus in Classes up to a
// factor, their sensitivity. K and V are items of their own because their damages add up.
//
// Every item belongs to one variant of one group. A group takes one of its variants, and the items
// of the others are not stored.
type Problem struct {
	Classes     []Class
	Class       []uint32  // [items] index into Classes
	Sensitivity []float64 // [items] finite, at least 0
	Groups      []Group
}

// Plan is the answer to a Problem.
type Plan struct {
	// Choice holds an index into the options of the item's class, [items]. It means nothing for
	// items that are not stored.
	Choice []uint8
	Bytes  int64   // sum over the choices
	Damage float64 // sum over the choices
	// Slope is the damage that one more byte would have saved where the budget ran out: the
	// marginal price of a byte. 0 when every item got its best option.
	Slope   float64
	Variant []int // [groups] index into the group's variants
}
