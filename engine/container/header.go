// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/frame"
)

// Kind is what a file holds.
type Kind uint16

// The kinds of files.
const (
	kindInvalid Kind = 0
	KindCache   Kind = 1 // a KV cache: records of (layer, segment) with K and V
	KindRows    Kind = 2 // rows of tensors: hidden states, embeddings; records have the K side only
	KindProfile Kind = 3 // a profile: side tensors only; OpenProfile reads it, Open refuses it
	KindVectors Kind = 4 // an index of vectors: side tensors only; OpenVectors reads it, Open refuses it
)

// String returns "cache", "rows", "profile" or "vectors".
func (k Kind) String() string {
	switch k {
	case KindCache:
		return "cache"
	case KindRows:
		return "rows"
	case KindProfile:
		return "profile"
	case KindVectors:
		return "vectors"
	}
	return fmt.Sprintf("Kind(%d)", uint16(k))
}

// origins are the values of Header.Origin by their number in the file.
var origins = []string{"", "npy", "safetensors"}

// Tensor describes a tensor whose rows are in the records.
type Tensor struct {
	Name  string
	DType string  // element type of the original, as safetensors names it: F32, F16, BF16
	Shape []int64 // 1 to 8 dimensions; the last one is the row
}

// dim returns the number of values in a row.
func (t *Tensor) dim() int { return int(t.Shape[len(t.Shape)-1]) }

// rows returns the number of rows: the product of all dimensions but the last.
func (t *Tensor) rows() int64 {
	n := int64(1)
	for _, d := range t.Shape[:len(t.Shape)-1] {
		n *= d
	}
	return n
}

// Limits of the header, in addition to those of quant.Geometry.
const (
	maxTensorDims = 8
	maxStored     = 1 << 16 // layers or tensors: a record names them in 16 bits
	maxName       = 1<<16 - 1
	maxDType      = 255
)

// Header describes the file as a whole.
type Header struct {
	Version int // set by Open; a writer chooses its own
	Kind    Kind

	// Geometry of the model, KindCache only.
	Geometry quant.Geometry
	// Layers are the model's numbers of the stored layers, ascending. KindCache only.
	Layers []int
	// Tensors are the tensors whose rows are stored. KindRows only.
	Tensors []Tensor
	// Origin is the format that KindRows was made from, "npy" or "safetensors", so that it can be written
	// back.
	Origin string

	// Tokens is the number of tokens in every layer. For KindRows it is the number of rows of all
	// tensors.
	Tokens int64
	// First is the position of token 0.
	First int64
	// SegmentTokens is the number of tokens (rows) per segment, 1 to 65535. The last
	// segment of a layer may have fewer.
	SegmentTokens int
	// Starts are the first tokens of the segments, where these are not all as long: a cache that grows has
	// sinks before its first segment, and cut ones. None is longer than SegmentTokens. nil where every
	// segment but the last has SegmentTokens. KindCache only.
	Starts []int64
	// Sinks and Window are the numbers of first and last tokens that the plan kept at high detail.
	Sinks, Window int
	// KType and VType are the element types of the original. KindCache only.
	KType, VType quant.DType

	// Seed is the rotation seed of all rotated codings.
	Seed uint64
	// Config is the configuration of the compression, as text. This package does not interpret it.
	Config string
	// Model names the model.
	Model string
	// Metadata is the metadata of the original file.
	Metadata map[string]string
	// Profile identifies the profile that the plan used; zero if it used none.
	Profile [32]byte
	// QueryEnergy is the mean of |q|^2, [stored layers, kv_heads], for the row bias. nil if
	// unknown.
	QueryEnergy []float32
	// Metrics are those of K of blocks that are not exact, [stored layers, kv_heads], nil for a head without. Each is a
	// diagonal of binary16 numbers that are equal on both components of a rotary pair. nil if no head has one.
	// KindCache only.
	Metrics []*frame.Metric
}

// MetricOf returns the metric that K of a block of a stored layer's head is coded in, or nil. Exact rows are in none.
func (h *Header) MetricOf(layer, head int, b *Block) *frame.Metric {
	if b.K.Format.Exact() {
		return nil
	}
	return h.Metric(layer, head)
}

// Metric returns the metric of K of a stored layer's head, or nil.
func (h *Header) Metric(layer, head int) *frame.Metric {
	if h.Metrics == nil {
		return nil
	}
	return h.Metrics[layer*h.Geometry.KVHeads+head]
}

// Stored returns the number of stored layers or tensors: the range of Record.Layer. It is 0 for a
// profile and for vectors.
func (h *Header) Stored() int {
	switch h.Kind {
	case KindRows:
		return len(h.Tensors)
	case KindProfile, KindVectors:
		return 0
	}
	return len(h.Layers)
}

// KVHeads returns the number of heads in every record: kv_heads, or 1 for KindRows.
func (h *Header) KVHeads() int {
	if h.Kind == KindRows {
		return 1
	}
	return h.Geometry.KVHeads
}

// Dims returns the number of values in a row of K and of V. V is 0 for KindRows.
func (h *Header) Dims(layer int) (k, v int) {
	if h.Kind == KindRows {
		return h.Tensors[layer].dim(), 0
	}
	return h.Geometry.HeadDim, h.Geometry.HeadDimV
}

// LayerTokens returns the number of tokens (rows) of a stored layer or tensor.
func (h *Header) LayerTokens(layer int) int64 {
	if h.Kind == KindRows {
		return h.Tensors[layer].rows()
	}
	return h.Tokens
}

// Segments returns the number of segments of a stored layer or tensor.
func (h *Header) Segments(layer int) int64 {
	if h.Starts != nil {
		return int64(len(h.Starts))
	}
	n := int64(h.SegmentTokens)
	return (h.LayerTokens(layer) + n - 1) / n
}

// SegmentLen returns the number of tokens in a segment.
func (h *Header) SegmentLen(layer, segment int) int {
	if h.Starts != nil {
		if segment+1 < len(h.Starts) {
			return int(h.Starts[segment+1] - h.Starts[segment])
		}
		return int(h.Tokens - h.Starts[segment])
	}
	return int(min(h.LayerTokens(layer)-h.SegmentStart(segment), int64(h.SegmentTokens)))
}

// SegmentStart returns the number of the first token of a segment in its layer.
func (h *Header) SegmentStart(segment int) int64 {
	if h.Starts != nil {
		return h.Starts[segment]
	}
	return int64(segment) * int64(h.SegmentTokens)
}

// longest returns the longest segment of a layer that has segments.
func (h *Header) longest(layer int) (segment int) {
	for s := range h.Starts {
		if h.SegmentLen(layer, s) > h.SegmentLen(layer, segment) {
			segment = s
		}
	}
	return segment
}

// Outside returns how many of the first tokens of a stored layer no query behind all tokens can see:
// those that lie outside the layer's window then. A plan drops them.
func (h *Header) Outside(layer int) int64 {
	if h.Kind != KindCache {
		return 0
	}
	return h.Geometry.Outside(h.Layers[layer], h.Tokens)
}

// OutsideIn returns how many of the first tokens of a segment no query behind all tokens can see.
func (h *Header) OutsideIn(layer, segment int) int {
	from := h.SegmentStart(segment)
	return int(min(max(h.Outside(layer)-from, 0), int64(h.SegmentLen(layer, segment))))
}

// expandedBytes returns the size of a record's rows after decompression, in the element types of
// the original.
func (h *Header) expandedBytes(layer, segment int) int64 {
	k, v := h.Dims(layer)
	row := int64(k*h.KType.Size() + v*h.VType.Size())
	if h.Kind == KindRows {
		row = int64(k * dtypeSize(h.Tensors[layer].DType))
	}
	return int64(h.SegmentLen(layer, segment)) * int64(h.KVHeads()) * row
}

// LargestRecord returns the bytes that the largest of the file's records stands for.
func (h *Header) LargestRecord() (bytes int64) {
	for layer := range h.Stored() {
		if h.Segments(layer) > 0 {
			bytes = max(bytes, h.expandedBytes(layer, h.longest(layer)))
		}
	}
	return bytes
}

// Records returns the number of records in a complete file: one for each (layer, segment). A
// profile and vectors have none.
func (h *Header) Records() int64 {
	switch h.Kind {
	case KindProfile, KindVectors:
		return 0
	case KindCache:
		return int64(len(h.Layers)) * h.Segments(0)
	}
	n := int64(0)
	for i := range h.Tensors {
		n += h.Segments(i)
	}
	return n
}

// dtypeSize returns the bytes per element of a safetensors type, or 0 for an unknown type.
func dtypeSize(name string) int {
	switch name {
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3":
		return 1
	case "U16", "I16", "F16", "BF16":
		return 2
	case "U32", "I32", "F32":
		return 4
	case "U64", "I64", "F64":
		return 8
	}
	return 0
}

// Types returns the element types of the original of K and V of a stored layer, or of the rows of a tensor.
// One that no coding has is quant.DTypeInvalid.
func (h *Header) Types(layer int) []quant.DType {
	if h.Kind == KindRows {
		return []quant.DType{typeNamed(h.Tensors[layer].DType)}
	}
	return []quant.DType{h.KType, h.VType}
}

func typeNamed(name string) quant.DType {
	for _, t := range []quant.DType{quant.Float32, quant.Float16, quant.BFloat16} {
		if t.String() == name {
			return t
		}
	}
	return quant.DTypeInvalid
}

// SeenValues returns the number of values of all rows that a query behind all tokens can see.
func (h *Header) SeenValues() (n int64) {
	for i := range h.Stored() {
		k, v := h.Dims(i)
		n += (h.LayerTokens(i) - h.Outside(i)) * int64(h.KVHeads()) * int64(k+v)
	}
	return n
}

// Values returns the number of values of all rows that a file stands for.
func (h *Header) Values() (n int64) {
	for i := range h.Stored() {
		k, v := h.Dims(i)
		n += h.LayerTokens(i) * int64(h.KVHeads()) * int64(k+v)
	}
	return n
}
