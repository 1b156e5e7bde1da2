// SPDX-License-Identifier: Apache-2.0

package container

// Limits bound what a reader takes on behalf of a file. They are always on; a field that is
// zero has its default. Nothing is allocated before the limit that covers it was checked.
type Limits struct {
	MaxHeaderBytes int64 // header section; default 16 MiB
	MaxRecordBytes int64 // one record section; default 1 GiB
	MaxSideBytes   int64 // one side tensor, decoded; default 1 GiB
	MaxRecords     int64 // records of the file; default 2^20
	MaxSides       int64 // side tensors of the file; default 4096
	MaxTotalBytes  int64 // the file; default 2^44 (16 TiB)
	// MaxRecordTokens bounds kv_heads * tokens of one record, default 2^24: the token lists of
	// a record are not backed by as many bytes in the file.
	MaxRecordTokens int64
}

// A salvage spends at most this much on checksums of candidates that then fail, so that a file
// full of false markers costs time in proportion to its size and not to its square.
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
	set(&l.MaxHeaderBytes, 16<<20)
	set(&l.MaxRecordBytes, 1<<30)
	set(&l.MaxSideBytes, 1<<30)
	set(&l.MaxRecords, 1<<20)
	set(&l.MaxSides, 4096)
	set(&l.MaxTotalBytes, 1<<44)
	set(&l.MaxRecordTokens, 1<<24)
	return l
}
