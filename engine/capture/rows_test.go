// SPDX-License-Identifier: Apache-2.0

package capture_test

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/quant"
)

// half converts binary16 by its definition, in float64.
func half(h uint16) float64 {
	sign := 1.0
	if h>>15 == 1 {
		sign = -1
	}
	exp, man := int(h>>10)&31, float64(h&1023)
	switch exp {
	case 0:
		return sign * math.Ldexp(man, -24)
	case 31:
		if man == 0 {
			return math.Inf(int(sign))
		}
		return math.NaN()
	}
	return sign * math.Ldexp(1024+man, exp-25)
}

// TestConversion_AllHalves reads all 65536 values of both 16-bit types.
func TestConversion_AllHalves(t *testing.T) {
	f := &file{}
	f.add("b", "BF16", 256, 256)
	f.add("h", "F16", 256, 256)
	var m memFile
	w, err := capture.NewWriter(&m, f.decls, nil)
	noError(t, err)
	all := make([]byte, 0, 1<<17)
	for i := range 1 << 16 {
		all = binary.LittleEndian.AppendUint16(all, uint16(i))
	}
	noError(t, w.WriteAt("b", 0, all))
	noError(t, w.WriteAt("h", 0, all))
	noError(t, w.Close())
	s := mustOpen(t, m.b)
	dst := make([]float32, 1<<16)
	for _, a := range s.ActTensors() {
		noError(t, a.Tensor.ReadF32(0, 0, 256, dst))
		for i, v := range dst {
			bits := math.Float32bits(v)
			if a.Name == "b" {
				equal(t, "bits of a bfloat16", bits, uint32(i)<<16)
				continue
			}
			want := half(uint16(i))
			if math.IsNaN(want) {
				payload := uint32(0x7f800000) | uint32(i&0x3ff)<<13 | uint32(i>>15)<<31
				equal(t, "bits of a NaN", bits, payload)
			} else if float64(v) != want || math.Signbit(float64(v)) != (i>>15 == 1) {
				t.Fatalf("half %#04x is %v, want %v", i, v, want)
			}
		}
	}
}

func TestActivations_WhichTensorsHaveRows(t *testing.T) {
	f := &file{meta: map[string]string{"format": "pt"}}
	f.add("hidden", "BF16", 2, 3, 5)
	f.add("embed", "F32", 7, 4)
	f.add("ids", "I64", 2, 3)
	f.add("norm", "F32", 9)
	f.add("wide", "F16", 1, quant.MaxDim+1)
	f.add("none", "F32", 0, 8)
	f.add("flat", "F32", 8, 0)
	f.add("double", "F64", 2, 2)
	f.add("mask", "I8", 2, 2)
	s := mustOpen(t, f.bytes(t))
	equal(t, "is a KV capture", s.Info().KV, false)
	var names []string
	for _, a := range s.ActTensors() {
		names = append(names, a.Name)
	}
	if !slices.Equal(names, []string{"double", "embed", "hidden"}) { // order of the data
		t.Fatalf("tensors with rows %v", names)
	}
	h, err := capture.RowsOf(s, "hidden")
	noError(t, err)
	equal(t, "rows", h.Rows, 6)
	equal(t, "dim", h.Dim, 5)
	equal(t, "type", h.DType, quant.BFloat16)
	for name, text := range map[string]string{"ids": "I64 have no rows",
		"wide": "rows of 65537 values", "none": "no values", "flat": "no values"} {
		_, err := capture.RowsOf(s, name)
		wantFormatError(t, err, quant.ErrUnsupported, text)
	}
	_, err = capture.RowsOf(s, "x")
	wantCategory(t, err, quant.ErrShape, `"x" is not in the file`)
	equal(t, "side tensors", len(s.SideTensors()), 6)
	// Methods for captures return empty results for activations; they do not panic.
	equal(t, "tokens", s.Info().Tokens+s.Info().TokensNext+len(s.Info().Layers)+s.Info().Geometry.Layers, 0)
	_, ok := s.KV(0, capture.K)
	equal(t, "k", ok, false)
	_, ok = s.OWeight(0)
	equal(t, "o_weight", ok, false)
	wantCategory(t, s.ReadPositions(false, 0, nil), quant.ErrShape, "not a KV capture")
	wantCategory(t, s.ReadKept(0, 0, 0, nil), quant.ErrShape)
	checkSource(t, s, s.Info().Size)
}
