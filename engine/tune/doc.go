// SPDX-License-Identifier: Apache-2.0

// Package tune finds settings by search: exponents of the signals, how they are mixed, windows,
// planner and menus, for the model at hand and never by taste.
//
// # Concepts
//
// A Space lists the settings (Param), each with a coarse grid, and for numbers the range in which
// to refine. An Objective gives settings a number, the lower the better: Captures measures the
// future-attention error on captures; the command line has one that runs the model. Search walks
// the grid, one setting after the other, then refines the best it saw with an evolution strategy:
//
//	grid       for each setting in order: all grid values, the others as they are best so far; the
//	           best value stays where it is better by more than the setting's Price
//	refine     (mu + lambda): lambda children of the mu best, by uniform crossover and mutation
//	           with step sizes that are inherited and mutated themselves; the best mu of parents
//	           and children go on (Beyer and Schwefel, "Evolution strategies", 2002, section 4.3)
//
// The Price of a setting is what being away from its start value costs, in units of the objective:
// a signal that does not pay its price is off. It keeps what is found by luck on few texts out.
//
// # Resuming
//
// With Options.State, every value is written to a file before the search goes on. A search that
// finds its state takes values from there instead of the objective, and is otherwise the same
// search: the result is that of a run without interruption, given an objective that is
// deterministic. A state of another search (space, options, objective) is refused.
//
// # Errors
//
// quant.ErrShape for spaces, options and states that do not fit; quant.ErrCorrupt for a state that
// cannot be read; those of the objective. A cancelled context ends the search between two values.
//
// # Concurrency
//
// A Search belongs to one goroutine. Objectives may use many.
//
// # Determinism
//
// The same space, options and values give the same search: every choice is drawn from a generator
// seeded with Options.Seed and the number of the child.
package tune
