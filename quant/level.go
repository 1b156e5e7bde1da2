// SPDX-License-Identifier: Apache-2.0

package quant

import "fmt"

// Level is the level of detail of a block: how many rows remain. The Coding determines how each row
// is stored.
type Level uint8

// The levels of detail, finest first. New blocks are at Full, the zero value.
const (
	// Full keeps every token as a row of its own.
	Full Level = iota
	// Chunks merges runs of adjacent tokens to one row each; the run's count enters attention
	// as + log(count) on the row's score.
	Chunks
	// Summary keeps one to a few rows for a whole segment, with counts.
	Summary
	// Dropped keeps only the positions of the tokens.
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
