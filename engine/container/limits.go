// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// Limits bound the memory and the counts that a reader accepts from a file. They are always on: a
// zero field means its default. A reader checks a limit before it allocates what the limit covers.
type Limits struct {
	MaxHeaderBytes int64 // header section; default 16 MiB
	MaxRecordBytes int64 // one record section; default 1 GiB
	MaxSideBytes   int64 // one side tensor, decoded; default 1 GiB
	MaxRecords     int64 // records in the file; default 2^20
	MaxSides       int64 // side tensors in the file; default 2^16
	MaxTotalBytes  int64 // size of the file; default 2^44 (16 TiB)
	// MaxRecordTokens bounds kv_heads * tokens of a record, default 2^24. The file does not hold as
	// many bytes as the token lists of a record take in memory.
	MaxRecordTokens int64
	// MaxExpandedBytes bounds the bytes that a record stands for; default DefaultExpandedBytes.
	// Dropped tokens and coarse rows take few bytes in the file, so a small file could otherwise
	// require any amount of memory. Open refuses a file with a larger record. The limit also
	// applies to side tensors that are not stored raw.
	MaxExpandedBytes int64
}

// DefaultExpandedBytes is the default of Limits.MaxExpandedBytes. A reader that needs 64 MiB plus
// four times the largest record then needs 512 MiB. 4096 tokens of 8 KV heads with rows of 256
// float32 values are 64 MiB.
const DefaultExpandedBytes = 112 << 20

const defaultHeaderBytes, defaultRecords, defaultSides, defaultRecordTokens = 16 << 20, 1 << 20,
	1 << 16, 1 << 24

// Salvage spends at most this many bytes on checksums of candidates that fail. A file full of false
// markers then costs time in proportion to its size, not to its square.
const (
	salvageWork      = 16       // times the size of the file
	salvageWorkFloor = 64 << 20 // bytes, for small files
)

func (l Limits) withDefaults() Limits {
	set := func(p *int64, def int64) {
		if *p <= 0 {
			*p = def
		}
	}
	set(&l.MaxHeaderBytes, defaultHeaderBytes)
	set(&l.MaxRecordBytes, 1<<30)
	set(&l.MaxSideBytes, 1<<30)
	set(&l.MaxRecords, defaultRecords)
	set(&l.MaxSides, defaultSides)
	set(&l.MaxTotalBytes, 1<<44)
	set(&l.MaxRecordTokens, defaultRecordTokens)
	set(&l.MaxExpandedBytes, DefaultExpandedBytes)
	return l
}

// checkExpansion refuses a file with a record that expands beyond the limit.
func (h *Header) checkExpansion(p place, lim *Limits) error {
	for layer := range h.Stored() {
		if h.Segments(layer) == 0 {
			continue
		}
		s := h.longest(layer)
		p.layer, p.segment = layer, s
		if n := h.expandedBytes(layer, s); n > lim.MaxExpandedBytes {
			return p.tooLarge(-1, "size of the expanded record", bytesOf(lim.MaxExpandedBytes), bytesOf(n))
		}
		if n := int64(h.KVHeads()) * int64(h.SegmentLen(layer, s)); n > lim.MaxRecordTokens {
			return p.tooLarge(-1, "kv_heads * tokens of the record", lim.MaxRecordTokens, n)
		}
	}
	return nil
}

func bytesOf(n int64) string { return fmt.Sprintf("%d bytes", n) }

// checkWritten refuses what readers refuse by default: a file that is written can be read.
func (h *Header) checkWritten() error {
	lim := Limits{}.withDefaults()
	if n := h.Records(); n > lim.MaxRecords {
		return fmt.Errorf("kvist/container: header: %d records, readers accept %d: %w", n,
			lim.MaxRecords, quant.ErrTooLarge)
	}
	for layer := range h.Stored() {
		if h.Segments(layer) == 0 {
			continue
		}
		s := h.longest(layer)
		if n := h.expandedBytes(layer, s); n > lim.MaxExpandedBytes {
			return fmt.Errorf("kvist/container: header: a record of layer %d expands to %d bytes, "+
				"readers accept %d (shorter segments make smaller records): %w", layer, n,
				lim.MaxExpandedBytes, quant.ErrTooLarge)
		}
		if n := int64(h.KVHeads()) * int64(h.SegmentLen(layer, s)); n > lim.MaxRecordTokens {
			return fmt.Errorf("kvist/container: header: a record of layer %d has %d kv_heads * tokens, "+
				"readers accept %d (shorter segments make smaller records): %w", layer, n,
				lim.MaxRecordTokens, quant.ErrTooLarge)
		}
	}
	return nil
}

// Largest returns the most that has to be held of the file at a time: what its largest record stands
// for, or the longest section.
func (r *Reader) Largest() int64 {
	n := r.h.LargestRecord()
	for i := range r.entries {
		n = max(n, r.entries[i].length)
	}
	return n
}
