// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/kvist-project/kvist/quant"
)

// Validate reports an error unless the header describes a valid file.
//
// Errors: quant.ErrShape, quant.ErrUnsupported.
func (h *Header) validate() error {
	switch {
	case h.Kind != KindCache && h.Kind != KindRows && h.Kind != KindProfile && h.Kind != KindVectors:
		return shapef("header: %s, want cache, rows, profile or vectors", h.Kind)
	case h.Kind == KindProfile, h.Kind == KindVectors:
		// validateProfile and validateVectors check all of it.
	case h.SegmentTokens < 1 || h.SegmentTokens > maxSegmentTokens:
		return shapef("header: segments of %d tokens, want 1 to %d", h.SegmentTokens, maxSegmentTokens)
	case h.Tokens < 0 || h.Tokens > quant.MaxTokens:
		return shapef("header: %d tokens, want 0 to %d", h.Tokens, int64(quant.MaxTokens))
	case h.First < 0 || h.First > quant.MaxTokens:
		return shapef("header: first position %d, want 0 to %d", h.First, int64(quant.MaxTokens))
	case h.Sinks < 0 || h.Window < 0 || int64(h.Sinks) > math.MaxUint32 ||
		int64(h.Window) > math.MaxUint32:
		return shapef("header: sinks %d, window %d, want 0 to 2^32-1", h.Sinks, h.Window)
	}
	for _, t := range []struct{ name, s string }{{"config", h.Config}, {"model", h.Model}} {
		if !utf8.ValidString(t.s) || strings.ContainsRune(t.s, 0) {
			return shapef("header: %s is not UTF-8 without NUL", t.name)
		}
	}
	for k, v := range h.Metadata {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return shapef("header: metadata %q is not UTF-8", k)
		}
	}
	switch h.Kind {
	case KindRows:
		return h.validateRows()
	case KindProfile:
		return h.validateProfile()
	case KindVectors:
		return h.validateVectors()
	}
	return h.validateCache()
}

// validateProfile checks that a profile has a geometry, a model name, metadata and nothing else.
func (h *Header) validateProfile() error {
	switch {
	case len(h.Layers) != 0 || len(h.Tensors) != 0 || h.QueryEnergy != nil || h.Metrics != nil || h.Origin != "":
		return shapef("header: a file of kind profile with layers, tensors or query energy")
	case h.Tokens != 0 || h.First != 0 || h.SegmentTokens != 0 || h.Starts != nil || h.Sinks != 0 || h.Window != 0:
		return shapef("header: a file of kind profile with tokens")
	case h.KType != 0 || h.VType != 0 || h.Seed != 0 || h.Config != "" || h.Profile != [32]byte{}:
		return shapef("header: a file of kind profile with element types, seed, config or profile")
	}
	return h.validateGeometry()
}

// validateVectors checks that an index of vectors has a seed, a config, a model name, metadata and nothing else.
func (h *Header) validateVectors() error {
	switch {
	case len(h.Layers) != 0 || len(h.Tensors) != 0 || h.QueryEnergy != nil || h.Metrics != nil || h.Origin != "":
		return shapef("header: a file of kind vectors with layers, tensors or query energy")
	case h.Tokens != 0 || h.First != 0 || h.SegmentTokens != 0 || h.Sinks != 0 || h.Window != 0:
		return shapef("header: a file of kind vectors with tokens")
	case h.KType != 0 || h.VType != 0 || h.Profile != [32]byte{} || h.Geometry.Layers != 0:
		return shapef("header: a file of kind vectors with element types, profile or geometry")
	}
	return nil
}

// checkKind refuses a file of a kind that is not wanted; see parseHeader.
func checkKind(k, sides Kind) error {
	switch {
	case k != KindCache && k != KindRows && k != KindProfile && k != KindVectors:
		return fmt.Errorf("file of kind %s: %w", k, quant.ErrUnsupported)
	case k == KindVectors && sides == kindInvalid:
		return fmt.Errorf("the file is an index of vectors; kvist embed reads it: %w", quant.ErrUnsupported)
	case k == KindProfile && sides == kindInvalid:
		return fmt.Errorf("the file is a profile of a model; it holds no cache and no rows: %w", quant.ErrUnsupported)
	case k != sides && sides != kindInvalid:
		return fmt.Errorf("the file is of kind %s, want %s: %w", k, wanted(sides), quant.ErrUnsupported)
	}
	return nil
}

func wanted(sides Kind) string {
	if sides == KindProfile {
		return "a profile"
	}
	return "an index of vectors"
}

func (h *Header) validateGeometry() error {
	g := h.Geometry
	if err := g.Validate(); err != nil {
		return fmt.Errorf("kvist/container: header: %w", err)
	}
	if g.PerLayer != nil {
		return validateAttention(g)
	}
	if g.Rope.Layout == quant.RopeNone && (g.Rope.InvFreq != nil || g.Rope.RotaryDim != 0) {
		return shapef("header: rotary_dim %d and %d inv_freq without rope", g.Rope.RotaryDim,
			len(g.Rope.InvFreq))
	}
	return validateFreqs(g.Rope.InvFreq)
}

func validateFreqs(freqs []float32) error {
	for i, f := range freqs {
		if v := float64(f); math.IsNaN(v) || math.IsInf(v, 0) {
			return shapef("header: inv_freq %d is %v, want finite", i, f)
		}
	}
	return nil
}

func (h *Header) validateCache() error {
	g := h.Geometry
	if err := h.validateGeometry(); err != nil {
		return err
	}
	switch {
	case len(h.Layers) < 1 || len(h.Layers) > g.Layers:
		return shapef("header: %d layers stored, want 1 to %d", len(h.Layers), g.Layers)
	case len(h.Tensors) != 0 || h.Origin != "":
		return shapef("header: a file of kind cache with a tensor table")
	case h.KType.Size() == 0 || h.VType.Size() == 0:
		return shapef("header: element types %s and %s of K and V", h.KType, h.VType)
	case h.QueryEnergy != nil && len(h.QueryEnergy) != len(h.Layers)*g.KVHeads:
		return shapef("header: query energy has %d values, want layers * kv_heads = %d",
			len(h.QueryEnergy), len(h.Layers)*g.KVHeads)
	}
	if err := h.validateStarts(); err != nil {
		return err
	}
	for i, l := range h.Layers {
		if l < 0 || l >= g.Layers || (i > 0 && l <= h.Layers[i-1]) {
			return shapef("header: stored layer %d is %d, want ascending in [0, %d)", i, l, g.Layers)
		}
	}
	for i, f := range h.QueryEnergy {
		if !(f >= 0) || math.IsInf(float64(f), 0) {
			return shapef("header: query energy %d is %v, want finite and not negative", i, f)
		}
	}
	return validateMetrics(h)
}

// validateStarts checks that segments of different lengths divide the tokens.
func (h *Header) validateStarts() error {
	if h.Starts != nil && (len(h.Starts) == 0 || h.Starts[0] != 0) {
		return shapef("header: %d segments that do not begin with token 0", len(h.Starts))
	}
	for i, from := range h.Starts {
		to := h.Tokens
		if i+1 < len(h.Starts) {
			to = h.Starts[i+1]
		}
		if n := to - from; n < 1 || n > int64(h.SegmentTokens) {
			return shapef("header: segment %d of %d tokens, want 1 to %d", i, n, h.SegmentTokens)
		}
	}
	return nil
}

func (h *Header) validateRows() error {
	g := h.Geometry
	switch {
	case len(h.Tensors) < 1 || len(h.Tensors) > maxStored:
		return shapef("header: %d tensors, want 1 to %d", len(h.Tensors), maxStored)
	case h.Origin != "npy" && h.Origin != "safetensors":
		return shapef("header: origin %q, want npy or safetensors", h.Origin)
	case g.Layers != 0 || g.Heads != 0 || g.KVHeads != 0 || g.HeadDim != 0 || g.HeadDimV != 0 ||
		g.Rope.Layout != 0 || g.Rope.RotaryDim != 0 || g.Rope.Theta != 0 || g.Rope.InvFreq != nil ||
		g.PerLayer != nil || h.Layers != nil || h.QueryEnergy != nil || h.Metrics != nil || h.Starts != nil:
		return shapef("header: a file of kind rows with a geometry")
	case h.KType != 0 || h.VType != 0 || h.First != 0 || h.Sinks != 0 || h.Window != 0:
		return shapef("header: a file of kind rows with positions, sinks, window or types of K and V")
	}
	names := make(map[string]bool, len(h.Tensors))
	total := int64(0)
	for i := range h.Tensors {
		t := &h.Tensors[i]
		if err := t.validate(); err != nil {
			return err
		}
		if names[t.Name] {
			return shapef("header: tensor %q given twice", t.Name)
		}
		names[t.Name] = true
		total += t.rows() // both at most MaxTokens = 2^40, and 2^16 tensors: no overflow
	}
	if total != h.Tokens {
		return shapef("header: %d tokens, want the %d rows of all tensors", h.Tokens, total)
	}
	return nil
}

func (t *Tensor) validate() error {
	switch {
	case !utf8.ValidString(t.Name) || len(t.Name) > maxName:
		return shapef("header: tensor name of %d bytes, want UTF-8 of at most %d", len(t.Name), maxName)
	case dtypeSize(t.DType) == 0:
		return fmt.Errorf("kvist/container: header: tensor %q has element type %q: %w",
			t.Name, t.DType, quant.ErrUnsupported)
	case len(t.Shape) < 1 || len(t.Shape) > maxTensorDims:
		return shapef("header: tensor %q has %d dimensions, want 1 to %d", t.Name, len(t.Shape),
			maxTensorDims)
	}
	last := len(t.Shape) - 1
	if d := t.Shape[last]; d < 1 || d > quant.MaxDim {
		return shapef("header: tensor %q has rows of %d values, want 1 to %d", t.Name, d, quant.MaxDim)
	}
	if _, ok := product(t.Shape[:last], quant.MaxTokens); !ok {
		return shapef("header: tensor %q has shape %v, want at most %d rows", t.Name, t.Shape,
			int64(quant.MaxTokens))
	}
	return nil
}

// product multiplies dims. ok is false if a dim is negative or the product of the nonzero dims
// exceeds limit.
func product(dims []int64, limit int64) (n int64, ok bool) {
	n = 1
	zero := false
	for _, d := range dims {
		if d == 0 {
			zero = true
			continue
		}
		if d < 0 || d > limit/n {
			return 0, false
		}
		n *= d
	}
	if zero {
		return 0, true
	}
	return n, true
}
