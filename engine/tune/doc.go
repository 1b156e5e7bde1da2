// SPDX-License-Identifier: Apache-2.0

// Package tune searches settings: exponents of the signals, their mix, windows, planner and menus.
// The search runs on the model or the captures at hand.
//
// # Concepts
//
// A Space lists the settings (Param). Each has a coarse grid, and numbers also have a range to
// refine in. An Objective maps settings to a number, lower is better: Captures measures the
// future-attention error on captures; the command line has an objective that runs the model. Search
// walks the grid, one setting after the other, then refines the best point with an evolution
// strategy:
//
//	grid       for each setting in order: try all grid values while the other settings stay at their
//	           best; keep the best value if it is better by more than the setting's Price
//	refine     (mu + lambda): lambda children of the mu best, by uniform crossover and mutation
//	           with step sizes that are inherited and mutated themselves; the best mu of parents
//	           and children go on (Beyer and Schwefel, "Evolution strategies", 2002, section 4.3)
//
// The Price of a setting is the cost of leaving its start value, in units of the objective. A
// signal that does not earn its price stays off. This rejects gains that are luck on a few texts.
//
// Calibrate makes what archives of a model share, the basis and tables of its profile, from captures. WithPredictors
// adds what heads tell of each other.
// ArchiveSteps are what heads add to the step of an archive. Predict says what an error in each head is
// taken for, to hold against what a model shows.
//
// # Resuming
//
// With Options.State, the search writes every value to a file before it goes on. A search that
// finds its state takes values from there instead of calling the objective. With a deterministic
// objective the result equals that of an uninterrupted run. The search refuses a state of another
// search (space, options, objective).
//
// # Errors
//
// quant.ErrShape for invalid spaces and options, and for a state of another search;
// quant.ErrCorrupt for an unreadable state; those of the objective. A cancelled context ends the
// search between two values.
//
// # Concurrency
//
// A Search belongs to one goroutine. Objectives may use many.
//
// # Determinism
//
// The same space, options and values give the same search: Options.Seed and the number of the child
// seed every random choice.
package tune
