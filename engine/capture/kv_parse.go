// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Names of the tensors of a capture outside its layers.
const (
	nameTokens    = "tokens"
	nameSurprisal = "surprisal"
	namePositions = "positions"
	nameInvFreq   = "rope_inv_freq"
	nextSuffix    = "_next"
	layerPrefix   = "layers."
)

// kvReader checks the header of a KV capture and makes a kvCapture from it.
type kvReader struct {
	src *Source
	kv  *kvCapture
}

func readKV(s *Source) error {
	r := &kvReader{src: s, kv: &kvCapture{parts: make(map[int]*kvLayer)}}
	steps := []func() error{r.readMeta, r.readGeometry, r.findLayers, r.checkLayers,
		r.checkHidden, r.checkSide, r.readInvFreq, r.readPerLayer}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if err := r.kv.geo.Validate(); err != nil {
		if errors.Is(err, quant.ErrUnsupported) {
			return r.metaError(err)
		}
		// %v: the file is wrong, not the caller, so the category is ErrCorrupt.
		return r.metaError(corruptf("%v", err))
	}
	if r.kv.geo.PerLayer != nil {
		r.kv.geo = r.kv.geo.Canonical()
	}
	s.kv = r.kv
	i := &s.info
	i.KV, i.Geometry, i.Layers = true, r.kv.geo, slices.Clip(r.kv.layers)
	i.Tokens, i.TokensNext = r.kv.tokens, r.kv.tokensNext
	return nil
}

func (r *kvReader) metaError(cause error) error {
	return r.src.f.formatError(sectionMetadata, "", -1, cause)
}

func (r *kvReader) tensorError(t TensorInfo, cause error) error {
	return r.src.f.formatError(sectionTensor, t.Name, t.Offset, cause)
}

// integer reads a decimal number in [least, most] from the metadata. If the key is absent it
// returns def; a negative def makes the key required.
func (r *kvReader) integer(key string, least, most, def int64) (int64, error) {
	text, ok := r.src.info.Metadata[key]
	if !ok {
		if def >= 0 {
			return def, nil
		}
		return 0, r.metaError(corruptf("key %q is missing", key))
	}
	v, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil && strings.ContainsAny(text, "[,"):
		return 0, r.metaError(unsupportedf("%s is %.64q, a value for each layer; want equal "+
			"layers", key, text))
	case err == nil && v > most, errors.Is(err, strconv.ErrRange) && v > 0:
		return 0, r.metaError(unsupportedf("%s is %.64s, want at most %d", key, text, most))
	case err != nil || v < least:
		return 0, r.metaError(corruptf("%s is %.64q, want an integer of [%d, %d]",
			key, text, least, most))
	}
	return v, nil
}

func (r *kvReader) readMeta() error {
	m := r.src.info.Metadata
	if m["format"] != kvFormat && m["format"] != kvFormat2 {
		return r.metaError(fmt.Errorf("format is %.64q, want %q or %q: %w",
			m["format"], kvFormat, kvFormat2, quant.ErrVersion))
	}
	for _, key := range layerKeys {
		if _, ok := m[key]; ok && m["format"] == kvFormat {
			return r.metaError(corruptf("key %q in a file of %s, want %s", key, kvFormat, kvFormat2))
		}
	}
	first, err := r.integer("first_position", 0, quant.MaxTokens, 0)
	if err != nil {
		return err
	}
	r.src.info.Model, r.src.info.FirstPosition = m["model"], first
	return nil
}

// readGeometry reads the metadata. head_dim_v stays 0 if the shape of V defines it.
func (r *kvReader) readGeometry() error {
	g := &r.kv.geo
	for _, f := range []struct {
		key  string
		dst  *int
		most int64
		def  int64
	}{
		{"layers", &g.Layers, quant.MaxLayers, -1},
		{"heads", &g.Heads, quant.MaxHeads, -1},
		{"kv_heads", &g.KVHeads, quant.MaxHeads, -1},
		{"head_dim", &g.HeadDim, quant.MaxDim, -1},
		{"head_dim_v", &g.HeadDimV, quant.MaxDim, 0},
	} {
		v, err := r.integer(f.key, 1, f.most, f.def)
		if err != nil {
			return err
		}
		*f.dst = int(v)
	}
	return r.readRope()
}

func (r *kvReader) readRope() error {
	rope, m := &r.kv.geo.Rope, r.src.info.Metadata
	switch layout := m["rope_layout"]; layout {
	case "none":
		return nil
	case "half":
		rope.Layout = quant.RopeHalf
	case "interleaved":
		rope.Layout = quant.RopeInterleaved
	case "":
		return r.metaError(corruptf("key %q is missing", "rope_layout"))
	default:
		return r.metaError(unsupportedf("rope_layout is %.64q, want half, interleaved or none",
			layout))
	}
	if v := m["rope_applied"]; v != "true" {
		return r.metaError(unsupportedf("rope_applied is %.64q: K without RoPE; want K as attention "+
			"uses it, or rope_layout none", v))
	}
	dim, err := r.integer("rotary_dim", 2, quant.MaxDim, int64(r.kv.geo.HeadDim))
	if err != nil {
		return err
	}
	rope.RotaryDim = int(dim)
	text, ok := m["rope_theta"]
	if _, thetas := m[keyThetas]; !ok && thetas { // of each layer
		return nil
	}
	if _, freq := r.src.Lookup(nameInvFreq); !ok && !freq {
		return r.metaError(corruptf("key %q is missing, and so is tensor %q",
			"rope_theta", nameInvFreq))
	} else if !ok {
		return nil
	}
	theta, err := strconv.ParseFloat(text, 64)
	if err != nil || !(theta > 0) || math.IsInf(theta, 0) {
		return r.metaError(corruptf("rope_theta is %.64q, want a positive number", text))
	}
	rope.Theta = theta
	return nil
}

// layerName splits "layers.N.rest". ok is false for any other name.
func layerName(name string) (layer int, rest string, ok bool) {
	tail, ok := strings.CutPrefix(name, layerPrefix)
	if !ok {
		return 0, "", false
	}
	num, rest, ok := strings.Cut(tail, ".")
	if !ok {
		return 0, "", false
	}
	n, err := strconv.ParseUint(num, 10, 31)
	if err != nil || strconv.FormatUint(n, 10) != num { // a number has one spelling
		return 0, "", false
	}
	return int(n), rest, true
}

// wantShape compares a shape with the one that metadata and the first layer ask for.
func (r *kvReader) wantShape(info TensorInfo, text string, want ...int) error {
	ok := len(info.Shape) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = info.Shape[i] == int64(want[i])
	}
	if ok {
		return nil
	}
	return r.tensorError(info, corruptf("shape %v, want %v = %s by metadata and the first layer",
		info.Shape, want, text))
}

// tokenCount checks dim 1 of the tensor that defines the number of tokens.
func (r *kvReader) tokenCount(info TensorInfo) (int, error) {
	n := info.Shape[1]
	if n > quant.MaxTokens || n > math.MaxInt {
		return 0, r.tensorError(info, tooLargef("%d tokens, want at most %d", n,
			min(int64(quant.MaxTokens), math.MaxInt)))
	}
	return int(n), nil
}

// checkLayerExtras checks o_weight, kept and bias.
func (r *kvReader) checkLayerExtras() error {
	g := r.kv.geo
	for _, n := range r.kv.layers {
		l := r.kv.parts[n]
		if o := &l.oWeight; o.f != nil {
			info := o.info
			var err error
			if o.dtype, err = kvDType(info.DTypeName); err != nil {
				return r.tensorError(info, err)
			}
			hidden := int64(-1)
			if len(info.Shape) == 2 && info.Shape[0] <= math.MaxInt32 {
				hidden = info.Shape[0]
			}
			o.heads, o.rows, o.dim = 1, int(hidden), g.Heads*g.HeadDimV
			if hidden < 0 || info.Shape[1] != int64(o.dim) {
				return r.tensorError(info, corruptf("shape %v, want [hidden, heads * head_dim_v = %d]",
					info.Shape, o.dim))
			}
		}
		for _, e := range []struct {
			have        bool
			rest, dtype string
		}{{l.kept, "kept", "U8"}, {l.bias, "bias", "F32"}} {
			if !e.have {
				continue
			}
			info, _ := r.src.Lookup(fmt.Sprintf("%s%d.%s", layerPrefix, n, e.rest))
			if err := r.wantDType(info, e.dtype); err != nil {
				return err
			}
			if err := r.wantShape(info, "[kv_heads, tokens]", g.KVHeads, r.kv.tokens); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *kvReader) wantDType(info TensorInfo, dtype string) error {
	if info.DTypeName != dtype {
		return r.tensorError(info, unsupportedf("element type %s, want %s",
			info.DTypeName, dtype))
	}
	return nil
}

// checkSide checks the tensors with one value per token.
func (r *kvReader) checkSide() error {
	for _, e := range []struct{ name, dtype string }{
		{nameTokens, "I32"}, {nameSurprisal, "F32"}, {namePositions, "I32"},
	} {
		for _, next := range []bool{false, true} {
			info, ok := r.src.Lookup(sideName(e.name, next))
			if !ok {
				continue
			}
			if err := r.wantDType(info, e.dtype); err != nil {
				return err
			}
			n, text := r.kv.tokens, "[tokens]"
			if next {
				n, text = r.kv.tokensNext, "[tokens_next]"
			}
			if next && !r.kv.hasNext {
				return r.tensorError(info, corruptf("no layer has tokens after"))
			}
			if err := r.wantShape(info, text, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// readInvFreq reads the RoPE frequencies, if the capture has them.
func (r *kvReader) readInvFreq() error {
	info, ok := r.src.Lookup(nameInvFreq)
	rope := &r.kv.geo.Rope
	if !ok || rope.Layout == quant.RopeNone || len(info.Shape) == 2 && r.src.info.Metadata["format"] == kvFormat2 {
		return nil
	}
	if err := r.wantDType(info, "F32"); err != nil {
		return err
	}
	// RotaryDim <= quant.MaxDim bounds the allocation below; the length has been checked.
	if err := r.wantShape(info, "[rotary_dim/2]", rope.RotaryDim/2); err != nil {
		return err
	}
	raw := make([]byte, info.Bytes)
	if err := r.src.f.readFull(sectionTensor, info.Name, info.Offset, raw); err != nil {
		return err
	}
	rope.InvFreq = make([]float32, rope.RotaryDim/2)
	convertF32(quant.Float32, rope.InvFreq, raw)
	return r.finiteFrequencies(info, 0, rope.InvFreq)
}

func sideName(name string, next bool) string {
	if next {
		return name + nextSuffix
	}
	return name
}
