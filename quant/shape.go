// SPDX-License-Identifier: Apache-2.0

package quant

import (
	"fmt"
	"math"
)

// DType is the element type of unpacked rows.
type DType uint8

// The element types of captures and of rows handed to a backend.
const (
	DTypeInvalid DType = 0
	Float32      DType = 1
	Float16      DType = 2
	BFloat16     DType = 3
)

// Size returns the bytes of one element, 0 for an invalid type.
func (t DType) Size() int {
	switch t {
	case Float32:
		return 4
	case Float16, BFloat16:
		return 2
	}
	return 0
}

// String returns the safetensors name: F32, F16, BF16.
func (t DType) String() string {
	switch t {
	case Float32:
		return "F32"
	case Float16:
		return "F16"
	case BFloat16:
		return "BF16"
	}
	return fmt.Sprintf("DType(%d)", uint8(t))
}

// Format returns the exact format that stores elements of type t bit by bit.
func (t DType) Format() Format {
	switch t {
	case Float32:
		return F32
	case Float16:
		return F16
	case BFloat16:
		return BF16
	}
	return formatInvalid
}

// RopeLayout is the pairing of the components of a row that RoPE rotates together.
type RopeLayout uint8

// The RoPE layouts.
const (
	// RopeNone: K carries no rotary embedding.
	RopeNone RopeLayout = 0
	// RopeHalf pairs component i with i + rotary_dim/2 (Hugging Face llama, captures).
	RopeHalf RopeLayout = 1
	// RopeInterleaved pairs component 2i with 2i+1 (GGUF, GPT-J).
	RopeInterleaved RopeLayout = 2
)

// String returns "none", "half" or "interleaved".
func (l RopeLayout) String() string {
	switch l {
	case RopeNone:
		return "none"
	case RopeHalf:
		return "half"
	case RopeInterleaved:
		return "interleaved"
	}
	return fmt.Sprintf("RopeLayout(%d)", uint8(l))
}

// Rope describes the rotary position embedding that K contains.
// Source: RoFormer (2021, arXiv 2104.09864).
type Rope struct {
	Layout    RopeLayout
	RotaryDim int       // components that rotate, even; the rest stay
	Theta     float64   // base; inv_freq[i] = theta^(-2i/rotary_dim) unless InvFreq is given
	InvFreq   []float32 // [rotary_dim/2], or nil: given where a model scales its frequencies
}

// Pair returns the index of the rotary pair of component i of a row: below RotaryDim/2 for the components that
// are turned, and RotaryDim/2 + (i - RotaryDim) for the others, which have no partner.
func (r Rope) Pair(i int) int {
	switch half := r.RotaryDim / 2; {
	case i >= r.RotaryDim || half == 0:
		return i - half
	case r.Layout == RopeInterleaved:
		return i / 2
	default:
		return i % half
	}
}

// Frequencies returns the angle in radians by which one position turns each pair, [rotary_dim/2].
func (r Rope) Frequencies() []float64 {
	if r.Layout == RopeNone {
		return nil
	}
	f := make([]float64, r.RotaryDim/2)
	for i := range f {
		if r.InvFreq != nil {
			f[i] = float64(r.InvFreq[i])
		} else {
			f[i] = math.Pow(r.Theta, -2*float64(i)/float64(r.RotaryDim))
		}
	}
	return f
}

// maxFrequency bounds the frequencies of a Rope, in radians a position. Models use 1 and below. Up to
// this bound, float64 holds enough digits of the angle for every position up to MaxTokens.
const maxFrequency = 1024.0

// Validate checks r against a head_dim.
//
// Errors: ErrShape; ErrUnsupported for frequencies beyond maxFrequency.
func (r Rope) Validate(headDim int) error {
	switch {
	case r.Layout > RopeInterleaved:
		return fmt.Errorf("kvist/quant: rope layout %d is not known: %w", r.Layout, ErrShape)
	case r.Layout == RopeNone:
		return nil
	case r.RotaryDim <= 0 || r.RotaryDim%2 != 0 || r.RotaryDim > headDim:
		return fmt.Errorf("kvist/quant: rotary_dim %d, want even, in [2, head_dim %d]: %w",
			r.RotaryDim, headDim, ErrShape)
	case r.InvFreq != nil && len(r.InvFreq) != r.RotaryDim/2:
		return fmt.Errorf("kvist/quant: inv_freq has %d values, want rotary_dim/2 = %d: %w",
			len(r.InvFreq), r.RotaryDim/2, ErrShape)
	case r.InvFreq == nil && !(r.Theta > 0 && !math.IsInf(r.Theta, 0)):
		return fmt.Errorf("kvist/quant: rope theta %v, want a positive number: %w", r.Theta,
			ErrShape)
	case r.InvFreq == nil && r.Theta < 1/maxFrequency:
		return fmt.Errorf("kvist/quant: %w: rope theta %v; %v or more is", ErrUnsupported, r.Theta,
			1/maxFrequency)
	}
	for i, f := range r.InvFreq {
		if math.Abs(float64(f)) > maxFrequency {
			return fmt.Errorf("kvist/quant: %w: inv_freq %d is %v radians a position; up to %v is",
				ErrUnsupported, i, f, maxFrequency)
		}
	}
	return nil
}

// Geometry is the shape of a KV cache. K and V may have dims of their own.
type Geometry struct {
	Layers   int // layers of the model; a capture may hold fewer
	Heads    int // query heads
	KVHeads  int // key/value heads; Heads is a multiple
	HeadDim  int // components of a row of K and of a query
	HeadDimV int // components of a row of V and of an output
	Rope     Rope
	// PerLayer is how each layer of the model attends, [Layers], and takes the place of Rope; nil
	// where all layers have Rope, see all tokens and scale scores by 1/sqrt(head_dim). RopeOf,
	// WindowOf, ScaleOf and SoftcapOf serve both.
	PerLayer []LayerAttention
}

// GQARatio returns heads / kv_heads, the query heads that share one KV head.
func (g Geometry) GQARatio() int { return g.Heads / g.KVHeads }

// Limits on shapes, so that a hostile header cannot ask for unbounded memory, and on values.
const (
	MaxLayers = 1 << 14
	MaxHeads  = 1 << 14
	MaxTokens = 1 << 40
	// MaxDim is the largest row length. With it, <c,c> of int8 centroids fits int32.
	MaxDim = 1 << 16
	// MaxMagnitude is the largest absolute value that the rotated codings take. Above it the sums
	// of the rotation could overflow float32; such rows are refused.
	MaxMagnitude = 1 << 111
)

// Validate checks that g describes a cache.
//
// Errors: ErrShape; ErrUnsupported from its Rope and PerLayer.
func (g Geometry) Validate() error {
	switch {
	case g.Layers < 1 || g.Layers > MaxLayers:
		return fmt.Errorf("kvist/quant: %d layers, want 1 to %d: %w", g.Layers, MaxLayers, ErrShape)
	case g.KVHeads < 1 || g.KVHeads > MaxHeads:
		return fmt.Errorf("kvist/quant: %d kv_heads, want 1 to %d: %w", g.KVHeads, MaxHeads,
			ErrShape)
	case g.Heads < g.KVHeads || g.Heads > MaxHeads || g.Heads%g.KVHeads != 0:
		return fmt.Errorf("kvist/quant: %d heads, want a multiple of %d kv_heads up to %d: %w",
			g.Heads, g.KVHeads, MaxHeads, ErrShape)
	case g.HeadDim < 1 || g.HeadDim > MaxDim || g.HeadDimV < 1 || g.HeadDimV > MaxDim:
		return fmt.Errorf("kvist/quant: head_dim %d, head_dim_v %d, want 1 to %d: %w",
			g.HeadDim, g.HeadDimV, MaxDim, ErrShape)
	}
	if g.PerLayer != nil {
		return g.validatePerLayer()
	}
	return g.Rope.Validate(g.HeadDim)
}

// Rows is a matrix of rows in host memory, row-major: Data[r*Dim+i] is value i of row r.
type Rows struct {
	Dim  int
	Data []float32 // [rows, dim]
}

// Len returns the number of rows.
func (r Rows) Len() int {
	if r.Dim == 0 {
		return 0
	}
	return len(r.Data) / r.Dim
}

// Row returns row i, sharing memory.
func (r Rows) Row(i int) []float32 { return r.Data[i*r.Dim : (i+1)*r.Dim : (i+1)*r.Dim] }

// Validate checks that Data holds whole rows.
//
// Errors: ErrShape.
func (r Rows) Validate() error {
	if r.Dim <= 0 || r.Dim > MaxDim || len(r.Data)%r.Dim != 0 {
		return fmt.Errorf("kvist/quant: %d values are not rows of %d: %w", len(r.Data), r.Dim,
			ErrShape)
	}
	return nil
}
