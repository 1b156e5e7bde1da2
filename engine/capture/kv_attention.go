// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// Keys of kv-capture/2: a value for each layer of the model, joined by commas.
const (
	keyWindows    = "layer_windows"     // tokens that a query sees, its own included; 0: all
	keyLayouts    = "layer_rope_layout" // half, interleaved or none
	keyRotaryDims = "layer_rotary_dim"
	keyThetas     = "layer_rope_theta" // 0: none, the layer has frequencies or no RoPE
	keyScales     = "layer_scale"      // 0: 1/sqrt(head_dim)
	keySoftcaps   = "layer_softcap"    // 0: none
)

var layerKeys = []string{keyWindows, keyLayouts, keyRotaryDims, keyThetas, keyScales, keySoftcaps}

// ropeLayouts are the names of RoPE layouts in captures.
var ropeLayouts = map[string]quant.RopeLayout{"none": quant.RopeNone, "half": quant.RopeHalf,
	"interleaved": quant.RopeInterleaved}

// readPerLayer reads what each layer's attention is, in a file of kv-capture/2.
func (r *kvReader) readPerLayer() error {
	if r.src.info.Metadata["format"] != kvFormat2 {
		return nil
	}
	g := &r.kv.geo
	all := make([]quant.LayerAttention, g.Layers)
	for l := range all {
		all[l].Rope = g.Rope
	}
	for _, f := range []struct {
		key string
		set func(l int, text string) error
	}{
		{keyWindows, func(l int, text string) error { return r.window(&all[l], text) }},
		{keyLayouts, func(l int, text string) error { return r.layout(&all[l].Rope, text) }},
		{keyRotaryDims, func(l int, text string) error { return r.rotaryDim(&all[l].Rope, text) }},
		{keyThetas, func(l int, text string) error {
			return r.number(keyThetas, text, &all[l].Rope.Theta)
		}},
		{keyScales, func(l int, text string) error { return r.number(keyScales, text, &all[l].Scale) }},
		{keySoftcaps, func(l int, text string) error {
			return r.number(keySoftcaps, text, &all[l].Softcap)
		}},
	} {
		if err := r.eachLayer(f.key, f.set); err != nil {
			return err
		}
	}
	if err := r.readFrequencies(all); err != nil {
		return err
	}
	for l := range all {
		if rope := &all[l].Rope; rope.Layout != quant.RopeNone && rope.InvFreq == nil && rope.Theta == 0 {
			return r.metaError(corruptf("layer %d has RoPE, and neither a value of %s or rope_theta nor "+
				"frequencies in %q", l, keyThetas, nameInvFreq))
		}
	}
	g.PerLayer = all
	return nil
}

// eachLayer calls set with the value of a key for every layer of the model; not if the key is absent.
func (r *kvReader) eachLayer(key string, set func(l int, text string) error) error {
	text, ok := r.src.info.Metadata[key]
	if !ok {
		return nil
	}
	layers := r.kv.geo.Layers
	if n := strings.Count(text, ",") + 1; n != layers {
		return r.metaError(corruptf("%s has %d values, want one for each of %d layers", key, n, layers))
	}
	l := 0
	for v := range strings.SplitSeq(text, ",") {
		if err := set(l, strings.TrimSpace(v)); err != nil {
			return err
		}
		l++
	}
	return nil
}

func (r *kvReader) window(a *quant.LayerAttention, text string) error {
	v, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil || v < 0:
		return r.metaError(corruptf("%s has %.64q, want a number of tokens, or 0 for all", keyWindows,
			text))
	case v > quant.MaxTokens:
		return r.metaError(unsupportedf("%s has %d, want at most %d", keyWindows, v,
			int64(quant.MaxTokens)))
	}
	a.Window = v
	return nil
}

func (r *kvReader) layout(rope *quant.Rope, text string) error {
	v, ok := ropeLayouts[text]
	if !ok {
		return r.metaError(unsupportedf("%s has %.64q, want half, interleaved or none", keyLayouts, text))
	}
	if v != quant.RopeNone && rope.Layout == quant.RopeNone {
		return r.metaError(corruptf("%s has %q, and rope_layout is none", keyLayouts, text))
	}
	if rope.Layout = v; v == quant.RopeNone {
		*rope = quant.Rope{}
	}
	return nil
}

func (r *kvReader) rotaryDim(rope *quant.Rope, text string) error {
	v, err := strconv.Atoi(text)
	if err != nil || v < 0 || v > rope.RotaryDim && rope.Layout != quant.RopeNone {
		return r.metaError(corruptf("%s has %.64q, want an even number up to rotary_dim %d", keyRotaryDims,
			text, rope.RotaryDim))
	}
	if rope.Layout != quant.RopeNone {
		rope.RotaryDim = v
	}
	return nil
}

func (r *kvReader) number(key, text string, dst *float64) error {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v >= 0) || math.IsInf(v, 0) {
		return r.metaError(corruptf("%s has %.64q, want a finite number from 0 up", key, text))
	}
	*dst = v
	return nil
}

// readFrequencies reads a row of rope_inv_freq for each layer, if the tensor has two dims. A row of
// zeros leaves the layer the frequencies of its theta.
func (r *kvReader) readFrequencies(all []quant.LayerAttention) error {
	info, ok := r.src.Lookup(nameInvFreq)
	if !ok || len(info.Shape) != 2 {
		return nil
	}
	half := r.kv.geo.Rope.RotaryDim / 2
	if err := r.wantDType(info, "F32"); err != nil {
		return err
	}
	if err := r.wantShape(info, "[layers, rotary_dim/2]", len(all), half); err != nil {
		return err
	}
	if len(all)*half > quant.MaxFrequencies {
		return r.tensorError(info, tooLargef("%d values, want at most %d", len(all)*half, quant.MaxFrequencies))
	}
	raw := make([]byte, 4*half)
	for l := range all {
		at := int64(l) * int64(len(raw))
		if err := r.src.f.readFull(sectionTensor, info.Name, info.Offset+at, raw); err != nil {
			return err
		}
		row := make([]float32, half)
		convertF32(quant.Float32, row, raw)
		if err := r.finiteFrequencies(info, l*half, row); err != nil {
			return err
		}
		if err := setFrequencies(&all[l].Rope, row); err != nil {
			return r.tensorError(info, corruptf("row %d: %v", l, err))
		}
	}
	return nil
}

func setFrequencies(rope *quant.Rope, row []float32) error {
	n := 0
	if rope.Layout != quant.RopeNone {
		n = rope.RotaryDim / 2
	}
	if i := slices.IndexFunc(row[n:], func(f float32) bool { return f != 0 }); i >= 0 {
		return corruptf("value %d is %v, behind the %d frequencies of the layer", n+i, row[n+i], n)
	}
	row = row[:n:n]
	zero := !slices.ContainsFunc(row, func(f float32) bool { return f != 0 })
	if rope.Layout != quant.RopeNone && !(zero && rope.Theta > 0) {
		rope.InvFreq = row
	}
	return nil
}

func (r *kvReader) finiteFrequencies(info TensorInfo, at int, freqs []float32) error {
	for i, f := range freqs {
		if f != f || math.IsInf(float64(f), 0) {
			return r.tensorError(info, corruptf("value %d is %v, want a finite number", at+i, f))
		}
	}
	return nil
}

// perLayerMetadata adds what kv-capture/2 says of layers to m. g is in its canonical form.
func perLayerMetadata(m map[string]string, g quant.Geometry) {
	m["format"] = kvFormat2
	most := widestRope(g)
	layout := most.Layout.String()
	m["rope_layout"], m["rope_applied"] = layout, strconv.FormatBool(most.Layout != quant.RopeNone)
	delete(m, "rotary_dim")
	delete(m, "rope_theta")
	if most.Layout != quant.RopeNone {
		m["rotary_dim"] = strconv.Itoa(most.RotaryDim)
	}
	for _, f := range []struct {
		key, usual string
		value      func(a *quant.LayerAttention) string
	}{
		{keyWindows, "0", func(a *quant.LayerAttention) string { return strconv.FormatInt(a.Window, 10) }},
		{keyLayouts, layout, func(a *quant.LayerAttention) string { return a.Rope.Layout.String() }},
		{keyRotaryDims, strconv.Itoa(most.RotaryDim), func(a *quant.LayerAttention) string {
			return strconv.Itoa(a.Rope.RotaryDim)
		}},
		{keyThetas, "0", func(a *quant.LayerAttention) string { return decimal(thetaOf(&a.Rope)) }},
		{keyScales, "0", func(a *quant.LayerAttention) string { return decimal(a.Scale) }},
		{keySoftcaps, "0", func(a *quant.LayerAttention) string { return decimal(a.Softcap) }},
	} {
		values, differ := make([]string, len(g.PerLayer)), false
		for l := range g.PerLayer {
			values[l] = f.value(&g.PerLayer[l])
			differ = differ || values[l] != f.usual
		}
		if differ {
			m[f.key] = strings.Join(values, ",")
		}
	}
}

func decimal(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// thetaOf returns the base that a capture states. Frequencies that are all zero are told from none by
// a base of zero.
func thetaOf(r *quant.Rope) float64 {
	if r.InvFreq != nil && !slices.ContainsFunc(r.InvFreq, func(f float32) bool { return f != 0 }) {
		return 0
	}
	return r.Theta
}

// widestRope returns the RoPE of the layer that turns the most components.
func widestRope(g quant.Geometry) (most quant.Rope) {
	for l := range g.PerLayer {
		if r := g.RopeOf(l); r.RotaryDim > most.RotaryDim {
			most = r
		}
	}
	return most
}

// KVFrequencies returns the tensor rope_inv_freq, F32, that a capture of this geometry must hold beside
// its metadata: [rotary_dim/2] where all layers share them, else [layers, rotary_dim/2]; nil where the
// metadata say it all. g is valid, which bounds the tensor.
func KVFrequencies(g quant.Geometry) (shape []int64, freqs []float32) {
	g = g.Canonical()
	if g.PerLayer == nil {
		if g.Rope.InvFreq == nil {
			return nil, nil
		}
		return []int64{int64(len(g.Rope.InvFreq))}, g.Rope.InvFreq
	}
	half, any := widestRope(g).RotaryDim/2, false
	for l := range g.PerLayer {
		freqs = append(freqs, make([]float32, half)...)
		copy(freqs[l*half:], g.RopeOf(l).InvFreq)
		any = any || g.RopeOf(l).InvFreq != nil
	}
	if !any {
		return nil, nil
	}
	return []int64{int64(g.Layers), int64(half)}, freqs
}
