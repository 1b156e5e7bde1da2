// SPDX-License-Identifier: Apache-2.0

package report

import (
	stdcmp "cmp"
	"slices"
)

// mapToken is what one token kept.
type mapToken struct {
	kind int
	k, v float64
}

// mapLine builds a row of the map from tokens in ascending order; with the heads of a layer
// folded into one line, in ascending order for each head of each segment.
type mapLine struct {
	k, v  []float64
	n     []int64
	votes [][]kindVotes // of a column, by kind
}

// kindVotes is how many tokens of a column are of a kind. Columns have few kinds and are many: maps would
// take some hundred bytes for each.
type kindVotes struct {
	kind   int32
	tokens int64
}

func newMapLine(columns int, hasV bool) *mapLine {
	l := &mapLine{
		k:     make([]float64, columns),
		n:     make([]int64, columns),
		votes: make([][]kindVotes, columns),
	}
	if hasV {
		l.v = make([]float64, columns)
	}
	return l
}

func (l *mapLine) add(column int64, t mapToken) {
	votes := l.votes[column]
	i, ok := slices.BinarySearchFunc(votes, int32(t.kind), func(v kindVotes, kind int32) int {
		return stdcmp.Compare(v.kind, kind)
	})
	if !ok {
		votes = slices.Insert(votes, i, kindVotes{kind: int32(t.kind)})
		l.votes[column] = votes
	}
	votes[i].tokens++
	l.n[column]++
	l.k[column] += t.k
	if l.v != nil {
		l.v[column] += t.v
	}
}

func (l *mapLine) row(layer, head int) MapRow {
	r := MapRow{
		Layer: layer,
		Head:  head,
		Kind:  make([]int, len(l.n)),
		KBits: make([]float32, len(l.n)),
		VBits: make([]float32, len(l.v)),
	}
	for c, n := range l.n {
		var best kindVotes
		for _, v := range l.votes[c] { // the first of the most
			if v.tokens > best.tokens {
				best = v
			}
		}
		r.Kind[c] = int(best.kind)
		r.KBits[c] = float32(l.k[c] / float64(max(1, n)))
		if l.v != nil {
			r.VBits[c] = float32(l.v[c] / float64(max(1, n)))
		}
	}
	return r
}

// ReportMap is the detail that every token kept. Column c of a layer covers its tokens
// [c*TokensPerColumn, (c+1)*TokensPerColumn).
type Map struct {
	TokensPerColumn int64    `json:"tokens_per_column"`
	Kinds           []Kind   `json:"kinds"`
	Rows            []MapRow `json:"rows"`
}

// ReportKind is a level with its codings.
type Kind struct {
	Level string `json:"level"`
	K     string `json:"k"`
	V     string `json:"v"`
}

// ReportMapRow is one KV head of one layer.
type MapRow struct {
	Layer int       `json:"layer"`  // index into Report.Layers
	Head  int       `json:"head"`   // -1: the mean over all heads, where there are too many
	Kind  []int     `json:"kind"`   // [columns] index into Kinds: that of most tokens
	KBits []float32 `json:"k_bits"` // [columns] mean packed bits a value of K, or of the rows
	VBits []float32 `json:"v_bits"` // [columns] of V; empty for rows
	// [columns] each, empty before AddWhy: mean weight of the tokens (1 is the head's), predicted
	// damage of a token, and the price of the next coarser and the next finer coding over the price
	// of a byte, of the side where it comes nearest to 1; 0 where there is none.
	Weight  []float32 `json:"weight,omitempty"`
	Damage  []float32 `json:"damage,omitempty"`
	Coarser []float32 `json:"coarser,omitempty"`
	Finer   []float32 `json:"finer,omitempty"`
}
