// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// kind is a block of the caches that attention is measured on.
type kind struct {
	k, v quant.Coding
	rows int
	pos  bool // its rows have positions of their own, because they are sorted
}

// What blocks of kvist hold: 32 rows, with 2 bytes a row for its position.
const (
	sortedRows  = 32
	posBytes    = 2
	mixedBlocks = 32 // that a mix of codings repeats after
)

// plainRows are the rows of a block of the codings that others use, which lie in order.
const plainRows = 256

// steps are the codings of kvist's blocks, from 1 bit up.
var steps = []string{"lm1+len+s8", "lm2+len+s8", "lm3+len+s8", "lm4+len+s8", "u8+s8"}

// Coding names what attention is measured on: a coding of all rows, or kvist's mix at a rate.
type Coding string

// The codings that are compared.
const (
	F16  Coding = "f16"
	Q8   Coding = "ggml-q8_0"
	Q4   Coding = "ggml-q4_0"
	K425 Coding = "kvist-4.25"
	K3   Coding = "kvist-3"
	K225 Coding = "kvist-2.25"
	K15  Coding = "kvist-1.5"
)

// Codings lists them, the largest first.
func Codings() []Coding { return []Coding{F16, Q8, Q4, K425, K3, K225, K15} }

// kinds returns the blocks that a cache in a coding repeats. tableBytes is what a backend keeps of a block.
func (c Coding) kinds(dim, tableBytes int) ([]kind, error) {
	var rate float64
	if text, ok := strings.CutPrefix(string(c), "kvist-"); ok {
		if _, err := fmt.Sscan(text, &rate); err != nil {
			return nil, fmt.Errorf("kvist/perf: coding %q: %w", c, quant.ErrUnsupported)
		}
		return mix(rate, dim, tableBytes)
	}
	q, err := quant.ParseCoding(string(c))
	if err != nil {
		return nil, err
	}
	return []kind{{k: q, v: q, rows: plainRows}}, nil
}

// mix returns blocks whose bytes, all counted, are at most rate bits a value. Blocks are worth from 1 to 64, as
// those that a plan sorts by attention, and errors of K count twice. Each step goes where it lowers the damage
// most, which is what the planner does.
func mix(rate float64, dim, tableBytes int) ([]kind, error) {
	ladder := make([]quant.Coding, len(steps))
	for i, s := range steps {
		c, err := quant.ParseCoding(s)
		if err != nil {
			return nil, err
		}
		ladder[i] = c
	}
	const sides = 2 * mixedBlocks
	side := func(step int) int { return ladder[step].PackedBytes(sortedRows, dim) }
	used := sides*side(0) + mixedBlocks*(sortedRows*posBytes+tableBytes)
	budget := int(rate / 8 * float64(sides*sortedRows*dim))
	if used > budget {
		return nil, fmt.Errorf("kvist/perf: %g bits a value with rows of %d: %w", rate, dim, quant.ErrBudget)
	}
	at := make([]int, sides) // even: K
	for {
		best, gain := -1, 0.0
		for i, s := range at {
			if s+1 == len(ladder) || used+side(s+1)-side(s) > budget {
				continue
			}
			worth := math.Pow(64, float64(i/2)/(mixedBlocks-1)) * float64(2-i%2)
			less := worth * (ladder[s].RelativeError() - ladder[s+1].RelativeError()) / float64(side(s+1)-side(s))
			if less > gain {
				best, gain = i, less
			}
		}
		if best < 0 {
			break
		}
		used += side(at[best]+1) - side(at[best])
		at[best]++
	}
	out := make([]kind, mixedBlocks)
	for i := range out {
		out[i] = kind{k: ladder[at[2*i]], v: ladder[at[2*i+1]], rows: sortedRows, pos: true}
	}
	return out, nil
}

// describe says which codings the values of some blocks have.
func describe(kinds []kind) string {
	count, all := map[string]int{}, 0
	for _, k := range kinds {
		for _, c := range []quant.Coding{k.k, k.v} {
			count[c.String()]++
			all++
		}
	}
	var parts []string
	for _, s := range append(slices.Clone(steps), "f16", "ggml-q8_0", "ggml-q4_0") {
		if n := count[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %.0f %%", s, 100*float64(n)/float64(all)))
		}
	}
	s := strings.Join(parts, ", ")
	if strings.HasPrefix(s, "ggml-") {
		s += "; unpacked by plain code here, llama.cpp has faster kernels for it"
	}
	return s
}
