// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// findLayers divides the tensors into layers and side tensors. The parts of a layer get handles
// here; they are checked later, when the number of tokens is known.
func (r *kvReader) findLayers() error {
	for _, t := range r.src.tensors {
		n, rest, ok := layerName(t.Name)
		part := slices.Index(partNames[:], rest)
		known := part >= 0 || rest == "o_weight" || rest == "kept" || rest == "bias" ||
			rest == restResidual
		if !ok || !known {
			r.src.side = append(r.src.side, t)
			continue
		}
		if n >= r.kv.geo.Layers {
			return r.tensorError(t, corruptf("layer %d, the model has %d", n, r.kv.geo.Layers))
		}
		l := r.kv.parts[n]
		if l == nil {
			l = &kvLayer{}
			r.kv.parts[n] = l
			r.kv.layers = append(r.kv.layers, n)
		}
		switch {
		case part >= 0:
			l.parts[part] = Tensor{f: r.src.f, info: t}
			continue
		case rest == "o_weight":
			l.oWeight = Tensor{f: r.src.f, info: t}
		case rest == "kept":
			l.kept = true
		case rest == "bias":
			l.bias = true
		case rest == restResidual:
			var err error
			if l.residual, err = r.checkResidual(t); err != nil {
				return err
			}
		}
		r.src.side = append(r.src.side, t)
	}
	if len(r.kv.layers) == 0 {
		return r.src.f.formatError(sectionHeader, "", -1,
			corruptf("no tensor %q in a KV capture", layerPrefix+"N.k"))
	}
	slices.Sort(r.kv.layers)
	return nil
}

// checkLayers checks every tensor of every layer against the metadata and the other layers.
func (r *kvReader) checkLayers() error {
	kv := r.kv
	if err := r.refuseRagged(); err != nil {
		return err
	}
	for _, n := range kv.layers {
		l := kv.parts[n]
		for _, need := range []struct{ have, want Part }{
			{K, V}, {V, K}, {Q, K}, {KNext, K}, {KNext, VNext}, {VNext, KNext}, {QNext, KNext},
		} {
			have, want := l.parts[need.have], l.parts[need.want]
			if have.f != nil && want.f == nil {
				return r.tensorError(have.info, corruptf("tensor \"%s%d.%s\" is missing",
					layerPrefix, n, need.want))
			}
		}
		if l.parts[K].f == nil {
			return r.src.f.formatError(sectionHeader, "", -1,
				corruptf("tensor \"%s%d.k\" is missing", layerPrefix, n))
		}
		for p := range l.parts {
			if l.parts[p].f == nil {
				continue
			}
			if err := r.checkPart(&l.parts[p], Part(p)); err != nil {
				return err
			}
		}
	}
	return r.checkLayerExtras()
}

// layerShape is the shape of a layer's tensors.
type layerShape struct{ heads, kvHeads, tokens, headDim, headDimV, tokensNext int64 }

// shapeOf returns the shape of a layer whose tensors agree with each other; otherwise false.
func (l *kvLayer) shapeOf() (s layerShape, ok bool) {
	dims := func(p Part) (d [3]int64) {
		if shape := l.parts[p].info.Shape; len(shape) == len(d) {
			copy(d[:], shape)
		}
		return d
	}
	k, v, q, kNext := dims(K), dims(V), dims(Q), dims(KNext)
	s = layerShape{q[0], k[0], k[1], k[2], v[2], kNext[1]}
	ok = k[0] > 0 && k[0] == v[0] && k[1] == v[1]
	if l.parts[Q].f != nil {
		ok = ok && q[0] > 0 && q[0]%k[0] == 0 && q[1] == k[1] && q[2] == k[2]
	}
	if l.parts[KNext].f != nil {
		vNext := dims(VNext)
		ok = ok && kNext[0] == k[0] && kNext[2] == k[2] && vNext[0] == k[0] && vNext[1] == kNext[1]
	}
	return s, ok
}

// refuseRagged refuses layers that are valid but differ from each other, as unsupported and not as
// corrupt: some models have such layers.
func (r *kvReader) refuseRagged() error {
	first := r.kv.layers[0]
	want, ok := r.kv.parts[first].shapeOf()
	if !ok {
		return nil
	}
	for _, n := range r.kv.layers[1:] {
		l := r.kv.parts[n]
		s, ok := l.shapeOf()
		if !ok {
			continue
		}
		// q and what comes after are optional by layer.
		same := s
		if l.parts[Q].f == nil || want.heads == 0 {
			same.heads = want.heads
		}
		if l.parts[KNext].f == nil || want.tokensNext == 0 {
			same.tokensNext = want.tokensNext
		}
		if same != want {
			return r.tensorError(l.parts[K].info, unsupportedf("layer %d is %v, layer %d %v: layers that "+
				"differ in heads, tokens or head_dim, want equal layers",
				first, want, n, s))
		}
	}
	return nil
}

// String lists the dims that are set, as tensors of the capture would have them.
func (s layerShape) String() string {
	text := fmt.Sprintf("k %v, v %v", []int64{s.kvHeads, s.tokens, s.headDim},
		[]int64{s.kvHeads, s.tokens, s.headDimV})
	if s.heads > 0 {
		text += fmt.Sprintf(", q %v", []int64{s.heads, s.tokens, s.headDim})
	}
	if s.tokensNext > 0 {
		text += fmt.Sprintf(", %d tokens after", s.tokensNext)
	}
	return text
}

// kvDType returns the element type of rows of K, V, Q and o_weight.
func kvDType(stored string) (quant.DType, error) {
	t := rowDType(stored)
	if t == quant.DTypeInvalid || stored == "I8" { // codes whose scales nothing names
		return t, unsupportedf("element type %s, want %s", stored, rowDTypes)
	}
	return t, nil
}

// checkPart checks one tensor of rows and completes its handle. The first K defines the number of
// tokens, the first V defines head_dim_v if the metadata do not, and the first K after the captured
// tokens defines the number of tokens after.
func (r *kvReader) checkPart(t *Tensor, p Part) error {
	kv, info := r.kv, t.info
	var err error
	if t.dtype, err = kvDType(info.DTypeName); err != nil {
		return r.tensorError(info, err)
	}
	if len(info.Shape) == 4 {
		return r.tensorError(info, unsupportedf("shape %v is a batch, want one "+
			"sequence: [heads, tokens, dim]", info.Shape))
	}
	if len(info.Shape) != 3 {
		return r.tensorError(info, corruptf("shape %v, want [heads, tokens, dim]", info.Shape))
	}
	if p == K && t.Name() == fmt.Sprintf("%s%d.k", layerPrefix, kv.layers[0]) {
		tokens, err := r.tokenCount(info)
		if err != nil {
			return err
		}
		kv.tokens = tokens
	}
	if p == KNext && !kv.hasNext {
		tokens, err := r.tokenCount(info)
		if err != nil {
			return err
		}
		kv.tokensNext, kv.hasNext = tokens, true
	}
	if info.Shape[0] == 0 || info.Shape[2] == 0 {
		return r.tensorError(info, unsupportedf("shape %v holds no values; remove "+
			"the layer from the capture", info.Shape))
	}
	if d := info.Shape[2]; p == V && kv.geo.HeadDimV == 0 {
		if d > quant.MaxDim {
			return r.tensorError(info, unsupportedf("shape %v has head_dim_v %d, want at most %d",
				info.Shape, d, quant.MaxDim))
		}
		kv.geo.HeadDimV = int(d)
	}
	t.heads, t.rows, t.dim = kv.geo.KVHeads, kv.tokens, kv.geo.HeadDim
	text := "[kv_heads, tokens, head_dim]"
	switch p {
	case Q, QNext:
		t.heads, text = kv.geo.Heads, "[heads, tokens, head_dim]"
	case V, VNext:
		t.dim, text = kv.geo.HeadDimV, "[kv_heads, tokens, head_dim_v]"
	}
	if p >= KNext {
		t.rows, text = kv.tokensNext, strings.Replace(text, "tokens", "tokens_next", 1)
	}
	return r.wantShape(info, text, t.heads, t.rows, t.dim)
}
