// SPDX-License-Identifier: Apache-2.0

// Package store holds segments of caches outside of the memory that serves: in memory of its own, on
// disk, or, by package remote, beyond the machine.
//
// # Concepts
//
// A Store maps keys of 256 bits to immutable bytes. What is put under a key stays what it is until it is
// deleted or expires; the same bytes may be put again, others are refused. A Store does not know what the
// bytes mean.
//
// Who writes seals: Seal puts a header in front of a payload, which says for whom and for what it was
// written (salt, model, profile, layout and version) and under which key, with an authentication tag of 128
// bits under the salt. Open checks all of it. So a store, a network or a neighbour that serves wrong bytes
// is found out, and a record of another tenant, model or version is told from a damaged one.
//
// # Errors
//
// Errors of a Store are *Error and name call, key and, on disk, file and offset; errors.Is finds the cause.
//
//	fs.ErrNotExist    nothing is under the key, or it has expired
//	fs.ErrExist       other bytes are under the key
//	quant.ErrCorrupt  the bytes are damaged; what is damaged is never returned
//	quant.ErrFull     the size limit or the disk does not hold the bytes
//	quant.ErrTooLarge the bytes are more than the store takes under one key
//	quant.ErrClosed   the store was closed
//
// and those of the operating system as they are. A Put that failed may have happened: a later Get returns
// all of the bytes or none. A Delete that failed may have happened too.
//
// Open fails with quant.ErrCorrupt for damage, and with a *ForeignError, which matches quant.ErrVersion or
// quant.ErrUnsupported, for what was written by or for others.
//
// # Disk
//
// Disk keeps numbered files that are only appended to. An entry is a header with its own checksum, then the
// bytes:
//
//	0   "KENT"
//	4   u32 1: put, 2: delete, 3: a later expiry, 4: wiped, its bytes are zeros and its key too
//	8   key
//	40  u64 bytes
//	48  i64 expiry, nanoseconds since 1970; 0: never
//	56  u64 offset of the entry in its file
//	64  u64 number of the file
//	72  u32 CRC32C of the bytes
//	76  u32 CRC32C of the header before
//	80  the bytes, then zeros to a multiple of 16
//
// Opening reads all headers, and the bytes of the last file: an entry that a crash has torn is not there,
// those before it are. A damaged header loses its entry only: reading goes on at the next one. Get checks
// the bytes of every entry that it returns. Compaction copies what is alive in the oldest file to the end and
// removes the file; the copies are on disk before. What is deleted stays in its file until then, or until Scrub
// overwrites it.
//
// # Concurrency
//
// The methods of a Store may be called by many goroutines. A folder belongs to one Disk at a time; where the
// system has flock, a second one is refused.
package store
