// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/quant"
)

// openWeights opens a file of weights a token: an .npy of [tokens], [kv_heads, tokens] or
// [layers, kv_heads, tokens], or safetensors with layers.N.weights of [kv_heads, tokens]. F16, F32 or
// F64. layers are the numbers of the layers that the weights are for.
func (a *app) openWeights(ctx context.Context, name string, layers []int) (kvfile.Weights,
	io.Closer, error) {
	src, in, err := a.openCapture(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	f := &weightFile{src: src, layers: layers}
	return f.read, in, nil
}

type weightFile struct {
	src    *capture.Source
	layers []int
}

// read returns the weights [tokens] of a layer (by number) and KV head.
func (f *weightFile) read(layer, kvHead int) ([]float32, error) {
	name := ""
	if f.src.Info().Format != "npy" {
		name = fmt.Sprintf("layers.%d.weights", layer)
	}
	t, ok := f.src.Lookup(name)
	if !ok {
		return nil, f.errorf("no tensor %q", name)
	}
	size := map[string]int{"F16": 2, "F32": 4, "F64": 8}[t.DTypeName]
	dims := len(t.Shape)
	if size == 0 || dims < 1 || dims > 3 || (name != "" && dims != 2) {
		return nil, f.errorf("tensor %q is %s of shape %v, want F16, F32 or F64 of [tokens], "+
			"[kv_heads, tokens] or [layers, kv_heads, tokens] (safetensors: [kv_heads, tokens])",
			name, t.DTypeName, t.Shape)
	}
	tokens := t.Shape[dims-1]
	row := int64(0)
	if dims > 1 {
		row = int64(kvHead)
		if row >= t.Shape[dims-2] {
			return nil, f.errorf("tensor %q of shape %v has no kv_head %d", name, t.Shape, kvHead)
		}
	}
	if dims > 2 {
		i := int64(slices.Index(f.layers, layer))
		if t.Shape[0] != int64(len(f.layers)) {
			return nil, f.errorf("weights of %d layers, the input holds %d", t.Shape[0],
				len(f.layers))
		}
		row += i * t.Shape[1]
	}
	raw := make([]byte, tokens*int64(size)) // no more than the file holds
	if err := f.src.ReadAt(name, row*int64(len(raw)), raw); err != nil {
		return nil, err
	}
	w := make([]float32, tokens)
	for i := range w {
		switch size {
		case 2:
			w[i] = quant.F16ToF32(binary.LittleEndian.Uint16(raw[2*i:]))
		case 4:
			w[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		case 8: // one beyond float32 becomes Inf, which no weight may be
			w[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(raw[8*i:])))
		}
	}
	return w, nil
}

func (f *weightFile) errorf(format string, args ...any) error {
	return fmt.Errorf("weights %s: "+format+": %w", append(append([]any{f.src.Info().Name}, args...),
		quant.ErrShape)...)
}
