// SPDX-License-Identifier: Apache-2.0

// Package container reads and writes .kvist files: compressed KV caches, and compressed rows of
// embeddings or hidden states. A file has everything that a reader needs to attend to the rows or
// to write the original back.
//
// # Concepts
//
// A file is a sequence of sections: a header, one record for each (layer, segment), side tensors
// that are stored exactly, an index and a trailer. A record holds all KV heads of one segment of
// one layer. Each head's tokens are divided among blocks; each block has its own level of detail
// and codings (package quant). The package does not interpret payloads: it knows how many bytes a
// coding takes, not what they mean.
// coding takes, not what they mean.
// A Writer writes a file front to back without seeking. The size is known before the first byte is
// written: HeaderSize + the sum of RecordSize and AuxSize + EndSize. A Reader reads
// at random: two or three reads open a file, and one more reads a record. Payloads start on
// multiples of 16 bytes, so they can be used in place.
//
// # Layout
//
// All numbers are little-endian. Sections start on multiples of 16 bytes. Padding is zero, and
// readers check it. The CRC32C of a section covers all of its bytes. FORMAT.md describes every
// field.
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
// A record costs at most 64 bytes, plus 4 bits per token and KV head, beside its payloads. Header,
// table, padding and index entry are included. The bound holds for up to 16 blocks of 32 tokens per
// head, of up to 4 kinds, with payloads that are multiples of 16 bytes; a test checks it. This is
// why the membership of tokens is range-coded: for 16 equal blocks of 512 tokens it takes 3.9 of
// the 4 bits.
//
// # Errors
//
// A damaged file gives a *CorruptError, which matches quant.ErrCorrupt and names the place. A file
// that this build or the Limits do not allow gives a *RefusedError, which matches quant.ErrVersion,
// quant.ErrUnsupported or quant.ErrTooLarge. Arguments that do not fit together give
// quant.ErrShape. Errors of the underlying io.Writer or io.ReaderAt are wrapped. Damage in a record
// loses that record only; Salvage reads a file whose index or end is missing.
//
// Hostile bytes never cause a panic, a hang or unbounded memory: the size of the file and the
// Limits, which are always on, bound every allocation. Anything else is a vulnerability.
//
// # Concurrency
//
// A Writer belongs to one goroutine. The methods of a Reader are safe for concurrent use.
//
// # Determinism
//
// The same calls give the same bytes on every machine, with one exception: side tensors stored
// as deflated byte planes depend on the version of compress/flate that wrote them. They decode
// to the same bytes everywhere.
package container
