// SPDX-License-Identifier: Apache-2.0

// Package container reads and writes .kvist files: compressed KV caches and rows of embeddings
// or hidden states, with everything needed to attend to them or to write the original back.
//
// # Concepts
//
// A file is a sequence of sections: a header, one record for each (layer, segment), side tensors
// that are kept exactly, an index, a trailer. A record holds all KV heads of one segment of one
// layer; each head's tokens are shared out among blocks, each with a level of detail and codings
// of its own (package quant). Payload bytes are opaque here: the package knows how many bytes a
// coding takes, not what they mean.
//
// A file is written front to back without seeking (Writer), and its size is known before a byte
// is written: HeaderSize + the sum of RecordSize and AuxSize + IndexSize + TrailerSize. It is
// read at random (Reader): two or three reads open it, one more gives a record, whose payloads
// stand on 16 bytes and can be used in place.
//
// # Layout
//
// All numbers are little-endian. Sections start on 16 bytes; padding is zero, and checked. Every
// byte stands under the CRC32C of its section. FORMAT.md has every field.
//
//	0         +--------------------------------------------+
//	          | magic version kind length crc flags     24 |  header
//	          | fields: tag flags length value padding     |
//	          +--------------------------------------------+
//	          | KREC layer flags segment table length crc  |  record (layer, segment)
//	          | palette: level, K coding, V coding         |
//	          | range-coded: blocks of each head, the      |
//	          |   block of each token, rows of merges      |
//	          | 0 0 0                                      |
//	   16 n   | head 0 block 0 K | 0 | V | 0 | block 1 ... |
//	          +--------------------------------------------+
//	          | ... more records, in any order             |
//	          +--------------------------------------------+
//	          | KAUX crc length ... shape name dtype data  |  side tensor
//	          +--------------------------------------------+
//	          | KIDX crc entries, then for every section   |  index
//	          |   offset segment layer kind             16 |
//	          +--------------------------------------------+
//	size - 32 | index offset, length, crc, size, KVISTEND  |  trailer
//	          +--------------------------------------------+
//
// What a record costs beside its payloads, header, table, padding and index entry together, is at
// most 64 bytes and 4 bits for each token of each KV head, for up to 16 blocks of 32 tokens a
// head in up to 4 kinds and payloads that are multiples of 16; a test holds it. That is why the
// membership of tokens is range-coded: 16 equal blocks of 512 tokens leave 3.9 of the 4 bits
// for it, and the rest has to come from there.
//
// # Errors
//
// Damage is a *CorruptError, which matches quant.ErrCorrupt and says where. What this build or
// the Limits in force do not allow is a *RefusedError, which matches quant.ErrVersion,
// quant.ErrUnsupported or quant.ErrTooLarge. Calls that do not fit together give quant.ErrShape.
// Errors of the io.Writer or io.ReaderAt below come through wrapped. Damage in one record loses
// that record only; Salvage reads a file whose index or end is gone.
//
// Nothing panics, hangs or takes memory without bound on hostile bytes: what is allocated is
// bounded by the bytes that are there and by Limits, which are always on. Anything else is a
// vulnerability.
//
// # Concurrency
//
// A Writer belongs to one goroutine. The methods of a Reader may be called from many at once.
//
// # Determinism
//
// The same calls give the same bytes on every machine, with one exception: side tensors stored
// as deflated byte planes depend on the version of compress/flate that wrote them. They decode
// to the same bytes everywhere.
package container
