// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Magics and markers.
const (
	magicHead  = "\x93KVIST\r\n" // no text starts with 93; CR LF reveals a text-mode transfer
	magicEnd   = "KVISTEND"
	markRecord = "KREC"
	markSide   = "KAUX"
	markIndex  = "KIDX"
)

// Sizes of the fixed parts and offsets of their checksums.
const (
	fileHeaderBytes   = 24
	fileHeaderCRCAt   = 16
	fieldHeaderBytes  = 8
	recordHeaderBytes = 24
	recordCRCAt       = 20
	sideHeaderBytes   = 40
	sideCRCAt         = 4
	indexHeaderBytes  = 16
	indexCRCAt        = 4
	indexEntryBytes   = 16
	trailerCRCAt      = 12
	geometryBytes     = 40
	spanBytes         = 32
	attentionBytes    = 48
	profileBytes      = 32

	// trailerSize is the size of the trailer, the last bytes of every file.
	trailerSize = 32
)

// Flags.
const (
	fieldFlagRequired   = 1       // header field: refuse the file if the tag is unknown
	recordFlagArchive   = 1       // record: payload in archive form
	sectionFlagRequired = 1 << 15 // index entry: refuse the file if the kind is unknown
)

// Kinds of index entries.
const (
	entryRecord = 1
	entrySide   = 2
)

// Tags of header fields, in file order.
const (
	tagPadding     = 0
	tagGeometry    = 1
	tagInvFreq     = 2
	tagLayers      = 3
	tagSpan        = 4
	tagSeed        = 5
	tagConfig      = 6
	tagModel       = 7
	tagMetadata    = 8
	tagProfile     = 9
	tagQueryEnergy = 10
	tagTensors     = 11
	tagAttention   = 12
	tagSegments    = 14
	tagMetric      = 15
)

// field is one row of a layout table.
type field struct {
	off, size int
	typ       string // u8, u16, u32, u64, i64, f64, bytes
	name      string
	meaning   string
	legal     string
}

// layout is one fixed structure of the file. FORMAT.md and the dump are generated from these
// tables.
type layout struct {
	name   string
	bytes  int
	fields []field
}

var layoutHeader = layout{"file header", fileHeaderBytes, []field{
	{0, 8, "bytes", "magic", "what the file is", `93 4B 56 49 53 54 0D 0A ("\x93KVIST\r\n")`},
	{8, 2, "u16", "version", "of the format", "1"},
	{10, 2, "u16", "kind", "what the file holds", "1 cache, 2 rows, 3 profile, 4 vectors"},
	{12, 4, "u32", "length", "of the header section, fields and padding included",
		"multiple of 16, at least 32"},
	{16, 4, "u32", "crc", "CRC32C of the header section but for this field", "as computed"},
	{20, 4, "u32", "flags", "reserved", "0"},
}}

var layoutField = layout{"header field", fieldHeaderBytes, []field{
	{0, 2, "u16", "tag", "which field; ascending, each at most once",
		"see the table of tags; 0 fills up to 16"},
	{2, 2, "u16", "flags", "bit 0: required, refuse the file where the tag is not known", "0 or 1"},
	{4, 4, "u32", "length", "of the value, padding to 8 not counted", "up to the end of the section"},
}}

var layoutGeometry = layout{"geometry (tag 1)", geometryBytes, []field{
	{0, 4, "u32", "layers", "of the model", "1 to 2^14"},
	{4, 4, "u32", "heads", "query heads", "multiple of kv_heads, up to 2^14"},
	{8, 4, "u32", "kv_heads", "key/value heads", "1 to 2^14"},
	{12, 4, "u32", "head_dim", "values of a row of K", "1 to 2^16"},
	{16, 4, "u32", "head_dim_v", "values of a row of V", "1 to 2^16"},
	{20, 1, "u8", "rope_layout", "0 none, 1 half, 2 interleaved", "0 to 2"},
	{21, 3, "bytes", "zero", "reserved", "0"},
	{24, 4, "u32", "rotary_dim", "components that RoPE rotates",
		"even, up to head_dim; 0 without RoPE"},
	{28, 4, "u32", "zero", "reserved", "0"},
	{32, 8, "f64", "theta", "base of RoPE", "positive, unless inv_freq is given"},
}}

var layoutSpan = layout{"span (tag 4)", spanBytes, []field{
	{0, 8, "u64", "tokens", "of every layer; kind rows: rows of all tensors", "up to 2^40"},
	{8, 8, "i64", "first", "position of token 0", "0 to 2^40; 0 for rows"},
	{16, 4, "u32", "segment_tokens", "tokens of a segment", "1 to 65535"},
	{20, 4, "u32", "sinks", "first tokens kept at high detail", "any; 0 for rows"},
	{24, 4, "u32", "window", "last tokens kept at high detail", "any; 0 for rows"},
	{28, 1, "u8", "k_type", "element type of the original K", "1 F32, 2 F16, 3 BF16; 0 for rows"},
	{29, 1, "u8", "v_type", "element type of the original V", "as k_type"},
	{30, 2, "u16", "zero", "reserved", "0"},
}}

var layoutAttention = layout{"kind of layer (tag 12)", attentionBytes, []field{
	{0, 1, "u8", "rope_layout", "0 none, 1 half, 2 interleaved", "0 to 2"},
	{1, 3, "bytes", "zero", "reserved", "0"},
	{4, 4, "u32", "rotary_dim", "components that RoPE rotates",
		"even, up to head_dim; 0 without RoPE"},
	{8, 8, "f64", "theta", "base of RoPE", "positive; 0 without RoPE, or where inv_freq is given"},
	{16, 8, "u64", "window", "tokens that a query sees, its own included: one at position p sees " +
		"(p - window, p]", "up to 2^40; 0 for all"},
	{24, 8, "f64", "scale", "on q.k", "2^-40 to 2^20; 0 for 1/sqrt(head_dim)"},
	{32, 8, "f64", "softcap", "score = softcap * tanh(score / softcap)", "2^-20 to 2^30; 0 for none"},
	{40, 4, "u32", "inv_freq", "number of frequencies that follow", "rotary_dim/2, or 0 for those of theta"},
	{44, 4, "u32", "zero", "reserved", "0"},
}}

var layoutRecord = layout{"record header", recordHeaderBytes, []field{
	{0, 4, "bytes", "marker", "", `"KREC"`},
	{4, 2, "u16", "layer", "index into the stored layers or tensors", "below their number"},
	{6, 2, "u16", "flags", "bit 0: archive form", "0 or 1"},
	{8, 4, "u32", "segment", "number of the segment in its layer", "below the layer's segments"},
	{12, 4, "u32", "table", "length of the table, or of the payload in archive form, padding not counted",
		"up to length - 24"},
	{16, 4, "u32", "length", "of the record, padding included", "multiple of 16"},
	{20, 4, "u32", "crc", "CRC32C of the record but for this field", "as computed"},
}}

var layoutPalette = layout{"palette entry", paletteEntryBytes, []field{
	{0, 1, "u8", "level", "0 FULL, 1 CHUNKS, 2 SUMMARY, 3 DROPPED", "0 to 3"},
	{1, 1, "u8", "k_format", "format of K", "a format; 0 for DROPPED"},
	{2, 1, "u8", "k_options", "scale rule | scale form << 2 of K; bit 7: K was coded without the head's mean",
		"as the format allows; 0 for DROPPED; bit 7 in a cache only"},
	{3, 1, "u8", "v_format", "format of V", "a format; 0 for DROPPED and for rows"},
	{4, 1, "u8", "v_options", "scale rule | scale form << 2 of V", "as the format allows, else 0"},
}}

var layoutSide = layout{"side tensor header", sideHeaderBytes, []field{
	{0, 4, "bytes", "marker", "", `"KAUX"`},
	{4, 4, "u32", "crc", "CRC32C of the section but for this field", "as computed"},
	{8, 8, "u64", "length", "of the section, padding included", "multiple of 16"},
	{16, 8, "u64", "stored", "bytes of the payload", "up to length - 40"},
	{24, 8, "u64", "decoded", "bytes of the tensor", "product of the shape * element size"},
	{32, 2, "u16", "name_length", "bytes of the name", "any"},
	{34, 1, "u8", "dtype_length", "bytes of the element type's name", "2 to 7"},
	{35, 1, "u8", "dims", "dimensions", "0 to 8"},
	{36, 1, "u8", "encoding", "of the payload", "0 raw, 1 byte planes + deflate, 2 progression"},
	{37, 3, "bytes", "zero", "reserved", "0"},
}}

var layoutIndex = layout{"index header", indexHeaderBytes, []field{
	{0, 4, "bytes", "marker", "", `"KIDX"`},
	{4, 4, "u32", "crc", "CRC32C of the index but for this field", "as computed"},
	{8, 4, "u32", "entries", "sections between header and index", "(length - 16) / 16"},
	{12, 4, "u32", "zero", "reserved", "0"},
}}

var layoutEntry = layout{"index entry", indexEntryBytes, []field{
	{0, 8, "u64", "offset", "of the section in the file", "where the section before ends"},
	{8, 4, "u32", "segment", "of a record", "as in the record; 0 for others"},
	{12, 2, "u16", "layer", "of a record", "as in the record; 0 for others"},
	{14, 2, "u16", "kind", "1 record, 2 side tensor; bit 15 of another: required",
		"1, 2; others are skipped or refused"},
}}

var layoutTrailer = layout{"trailer", trailerSize, []field{
	{0, 8, "u64", "index_offset", "of the index in the file", "multiple of 16"},
	{8, 4, "u32", "index_length", "of the index", "multiple of 16, up to the trailer"},
	{12, 4, "u32", "crc", "CRC32C of the trailer but for this field", "as computed"},
	{16, 8, "u64", "file_length", "of the file, trailer included", "as it is"},
	{24, 8, "bytes", "magic", "end of file", `"KVISTEND"`},
}}

// layouts lists the fixed structures in the order of FORMAT.md.
func layouts() []layout {
	return []layout{layoutHeader, layoutField, layoutGeometry, layoutSpan, layoutAttention,
		layoutRecord, layoutPalette, layoutSide, layoutIndex, layoutEntry, layoutTrailer}
}

// tagInfo describes a header field for FORMAT.md and the dump.
type tagInfo struct {
	tag      uint16
	name     string
	required bool
	value    string
}

func tagInfos() []tagInfo {
	return []tagInfo{
		{tagGeometry, "geometry", true, "the struct below; kinds cache and profile, always"},
		{tagInvFreq, "inv_freq", true, "f32[rotary_dim/2], radians per position; where the model " +
			"scales its frequencies"},
		{tagLayers, "layers", true, "u32[n], the model's numbers of the stored layers, ascending; " +
			"kind cache, always"},
		{tagSpan, "span", true, "the struct below; kinds cache and rows, always"},
		{tagSeed, "seed", true, "u64, of the rotation; kinds cache, rows and vectors, always"},
		{tagConfig, "config", false, "UTF-8 without NUL, the configuration; where not empty"},
		{tagModel, "model", false, "UTF-8 without NUL, the model's name; where not empty"},
		{tagMetadata, "metadata", false, "u32 n, then n times u32 key length, u32 value length, " +
			"key, value (UTF-8), keys ascending by bytes; where not empty"},
		{tagProfile, "profile", false, "32 bytes, not all zero; where a profile was used"},
		{tagQueryEnergy, "query_energy", false,
			"u32 stored layers, u32 kv_heads, f32[layers][kv_heads]: mean of the squared length of " +
				"queries; where known"},
		{tagTensors, "tensors", true, "u32 n, u8 origin (1 npy, 2 safetensors), 3 zero bytes, " +
			"then n times u16 name length, u8 dtype length, u8 dims, u64[dims], name, dtype; kind " +
			"rows, always"},
		{tagAttention, "attention", true, "u32 layers of the model, u32 n, then n times the struct " +
			"below and f32[inv_freq], then u16[layers]: the kind of each layer; kinds cache and " +
			"profile, where layers differ, or have a window, a scale or a soft cap"},
		{tagSegments, "segments", true, "u32[segments]: tokens of each segment, 1 to segment_tokens, together " +
			"those of the file; kind cache, where the segments are not all of segment_tokens"},
		{tagMetric, "metric", true, "u32 stored layers, u32 kv_heads, then for each head u8: 0, or 1 and " +
			"f16[head_dim - rotary_dim/2], positive: the scale of each rotary pair and of each component " +
			"behind rotary_dim; kind cache, where a head has one. 13 was a metric of other rows"},
	}
}

// value formats a field as the dump shows it.
func (f *field) value(b []byte) string {
	le := binary.LittleEndian
	switch f.typ {
	case "u8":
		return fmt.Sprint(b[0])
	case "u16":
		return fmt.Sprint(le.Uint16(b))
	case "u32":
		if f.name == "crc" {
			return hex32(le.Uint32(b))
		}
		return fmt.Sprint(le.Uint32(b))
	case "u64":
		return fmt.Sprint(le.Uint64(b))
	case "i64":
		return fmt.Sprint(int64(le.Uint64(b)))
	case "f64":
		return fmt.Sprint(math.Float64frombits(le.Uint64(b)))
	}
	return fmt.Sprintf("%q", b)
}
