// SPDX-License-Identifier: Apache-2.0

package importance

import (
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/quant"
)

// sketchSize is the number of values of a sketch. Unrelated blocks then meet at a cosine of
// 0 +- 1/8, four deviations below where similarity begins to count.
const sketchSize = 64

// habituationConfig configures a habituation. The zero value is the default.
type habituationConfig struct {
	Block    int     // rows of a block. 0: 32
	Memory   int     // sketches remembered. 0: 32; at most 4096
	HalfLife float64 // blocks after which a sketch counts half. 0: 256
	Floor    float64 // least weight, in [0, 1]. 0: 0.25
	Seed     uint64  // of the projection
}

func (c habituationConfig) withDefaults() habituationConfig {
	if c.Block == 0 {
		c.Block = 32
	}
	if c.Memory == 0 {
		c.Memory = 32
	}
	if c.HalfLife == 0 {
		c.HalfLife = 256
	}
	if c.Floor == 0 {
		c.Floor = 0.25
	}
	return c
}

// habituation suppresses what repeats. A block of adjacent rows of one KV head (V, or K with
// RoPE undone: positions must not be in it) is sketched: the mean over its rows of the signs of
// a random projection of row minus the mean of the blocks before. The sketch is compared with a
// fading memory of earlier ones:
//
//	familiarity = sum over memory of strength * max(0, (cosine - 1/2) / (1/2))
//	weight      = Floor + (1 - Floor) / (1 + familiarity)
//
// A block like no other keeps weight 1; one seen once before gets about (1+Floor)/2, one seen
// often comes down to Floor. Signs instead of values, because a few massive channels would
// otherwise make all blocks look the same.
//
// State: StateBytes, 256 bytes a remembered sketch and 16 a value of a row (8 KiB and 1 KiB by
// default at head_dim 64). Rows are taken one by one: results do not depend on how they were
// split into calls. Scaling all rows by a power of two changes nothing, up to underflow. Not
// safe for concurrent use.
//
// Source: habituation as relevance minus redundancy after maximal marginal relevance (Carbonell
// and Goldstein 1998); signs of random projections after Charikar (2002).
type habituation struct {
	dim      int
	cfg      habituationConfig
	fade     float64
	rotation *quant.Rotation
	memory   []float32 // [Memory, sketchSize], unit length
	strength []float64 // [Memory]
	total    float64   // fading number of blocks
	blocks   float64   // number of blocks
	mean     []float64 // [dim] of the blocks so far
	rows     int       // of the block at work
	sum      []float64 // [dim] of its rows
	sketch   [sketchSize]float64
	work     []float32
}

// newHabituation returns a memory of nothing, for rows of dim values.
//
// Errors: quant.ErrShape.
func newHabituation(dim int, cfg habituationConfig) (*habituation, error) {
	c := cfg.withDefaults()
	switch {
	case dim < 1 || dim > quant.MaxDim:
		return nil, shapeErr("habituation: rows of %d values, want 1 to %d", dim, quant.MaxDim)
	case c.Block < 1 || c.Block > 1<<16:
		return nil, shapeErr("habituation: blocks of %d rows, want 1 to %d", c.Block, 1<<16)
	case c.Memory < 1 || c.Memory > 4096:
		return nil, shapeErr("habituation: memory of %d sketches, want 1 to 4096", c.Memory)
	case !(c.HalfLife > 0) || math.IsInf(c.HalfLife, 0):
		return nil, shapeErr("habituation: half-life of %v blocks, want a positive number",
			c.HalfLife)
	case !(c.Floor >= 0 && c.Floor <= 1):
		return nil, shapeErr("habituation: floor %v, want 0 to 1", c.Floor)
	}
	// One window of a power of two: every output then mixes all values of the row.
	padded := sketchSize
	for padded < dim {
		padded *= 2
	}
	rot, err := quant.NewRotation(padded, c.Seed)
	if err != nil {
		return nil, fmt.Errorf("kvist/importance: habituation: %w", err)
	}
	return &habituation{dim: dim, cfg: c, fade: math.Exp2(-1 / c.HalfLife), rotation: rot,
		memory: make([]float32, c.Memory*sketchSize), strength: make([]float64, c.Memory),
		mean: make([]float64, dim), sum: make([]float64, dim),
		work: make([]float32, padded)}, nil
}

// StateBytes returns the bytes of the state.
func (h *habituation) StateBytes() int64 {
	return int64(4*(len(h.memory)+len(h.work)) + 8*(len(h.strength)+len(h.mean)+len(h.sum)) +
		8*sketchSize + 256)
}

// Clone returns an independent copy.
func (h *habituation) Clone() *habituation {
	c := *h
	c.memory, c.strength = slices.Clone(h.memory), slices.Clone(h.strength)
	c.mean, c.sum = slices.Clone(h.mean), slices.Clone(h.sum)
	c.work = slices.Clone(h.work)
	return &c
}

// BlockRows returns the number of rows of a block.
func (h *habituation) BlockRows() int { return h.cfg.Block }

// Pending returns the rows taken since the last whole block.
func (h *habituation) Pending() int { return h.rows }

// Add takes rows [rows, dim] and appends to dst the weight, in [Floor, 1], of every block that
// they complete. Rows of a block that is not whole yet have no weight: take 1.
//
// Errors: quant.ErrShape; *ValueError wrapping quant.ErrRange for NaN, infinities and magnitudes
// above 2^111. Nothing is taken then.
func (h *habituation) Add(dst []float64, x quant.Rows) ([]float64, error) {
	if err := checkRows("row", x, h.dim); err != nil {
		return dst, err
	}
	for i, v := range x.Data {
		if v > quant.MaxMagnitude || v < -quant.MaxMagnitude {
			return dst, &ValueError{"row", i / x.Dim, float64(v), "magnitudes up to 2^111",
				quant.ErrRange}
		}
	}
	for r := range x.Len() {
		h.row(x.Row(r))
		if h.rows == h.cfg.Block {
			dst = append(dst, h.close())
		}
	}
	return dst, nil
}

func (h *habituation) row(x []float32) {
	clear(h.work)
	var length float64
	for d, v := range x {
		h.sum[d] += float64(v)
		h.work[d] = float32(float64(v) - h.mean[d])
		length += float64(v) * float64(v)
	}
	h.rotation.Forward(h.work)
	// Within rounding of the mean a row has no direction; its signs would be noise.
	dead := 1e-4 * math.Sqrt(length/float64(len(h.work)))
	for i := range h.sketch {
		switch v := float64(h.work[i]); {
		case v > dead:
			h.sketch[i]++
		case v < -dead:
			h.sketch[i]--
		}
	}
	h.rows++
}

// discard forgets the rows of the block that is not whole yet.
func (h *habituation) discard() {
	clear(h.sum)
	h.sketch, h.rows = [sketchSize]float64{}, 0
}

// close compares the sketch of the block with the memory, and remembers it.
func (h *habituation) close() float64 {
	var length float64
	for _, v := range h.sketch {
		length += v * v
	}
	var unit [sketchSize]float32
	familiarity := 0.0
	if length == 0 {
		// Nothing but the mean of what was before: as familiar as can be.
		familiarity = h.total
	} else {
		for i, v := range h.sketch {
			unit[i] = float32(v / math.Sqrt(length))
		}
		familiarity = h.recall(unit[:])
	}
	h.total = h.fade*h.total + 1
	h.blocks++
	step := max(1-h.fade, 1/h.blocks)
	for d, s := range h.sum {
		h.mean[d] += step * (s/float64(h.rows) - h.mean[d])
	}
	h.discard()
	return h.cfg.Floor + (1-h.cfg.Floor)/(1+familiarity)
}

// recall returns how familiar a sketch is, and stores it: with the entry it resembles most, or in
// the place of the weakest.
func (h *habituation) recall(unit []float32) (familiarity float64) {
	best, weakest, top := -1, 0, 0.9
	for i := range h.strength {
		if h.strength[i] > 0 {
			c := dot(unit, h.memory[i*sketchSize:(i+1)*sketchSize])
			familiarity += h.strength[i] * max(0, 2*c-1)
			if c > top {
				best, top = i, c
			}
		}
		if h.strength[i] *= h.fade; h.strength[i] < 1e-12 {
			h.strength[i] = 0
		}
		if h.strength[i] < h.strength[weakest] {
			weakest = i
		}
	}
	if best < 0 {
		copy(h.memory[weakest*sketchSize:], unit)
		h.strength[weakest] = 1
		return familiarity
	}
	entry := h.memory[best*sketchSize : (best+1)*sketchSize]
	old := h.strength[best]
	var length float64
	var mix [sketchSize]float64
	for i := range mix {
		mix[i] = old*float64(entry[i]) + float64(unit[i])
		length += mix[i] * mix[i]
	}
	for i := range mix {
		entry[i] = float32(mix[i] / math.Sqrt(length))
	}
	h.strength[best] = old + 1
	return familiarity
}
