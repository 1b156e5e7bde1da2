// SPDX-License-Identifier: Apache-2.0

package quant

import "fmt"

// Level says how many rows of a block remain; the Coding says how each row is stored.
type Level uint8

// The levels of detail, finest first. The zero value is Full, which is what a block is born as.
const (
	// Full keeps every token as a row of its own.
	Full Level = iota
	// Chunks merges runs of adjacent tokens to one row each; the run's count enters attention
	// as + log(count) on the row's score.
	Chunks
	// Summary keeps one to a few rows for a whole segment, with counts.
	Summary
	// Dropped keeps nothing but the fact that these tokens stood here.
	Dropped

	numLevels
)

var levelNames = [numLevels]string{"FULL", "CHUNKS", "SUMMARY", "DROPPED"}

// String returns the level's name in capitals.
func (l Level) String() string {
	if l < numLevels {
		return levelNames[l]
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// Valid reports whether l is one of the four levels.
func (l Level) Valid() bool { return l < numLevels }
