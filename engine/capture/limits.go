// SPDX-License-Identifier: Apache-2.0

package capture

import "math"

// Limits bound what a file may ask of its reader. A zero field takes its default. A file that
// exceeds one is refused with quant.ErrTooLarge.
type Limits struct {
	HeaderBytes int64 // length of the header; default 100e6, as the reference implementation
	Tensors     int   // tensors of a file; default 1 << 18
	Dims        int   // dims of a tensor; default 64, as NumPy 2
	NameBytes   int   // bytes of a tensor's name; default 4096
	TotalBytes  int64 // bytes of the file; default 1 << 46 (64 TiB)
	MetaKeys    int   // keys of the metadata; default 1 << 16
	// InflatedBytes bounds the expanded size of all compressed members of an .npz together. The
	// default is 1 GiB plus 64 times the size of the file; only arrays of one value compress
	// better.
	InflatedBytes int64
}

const (
	defaultHeaderBytes = 100_000_000
	defaultTensors     = 1 << 18
	defaultDims        = 64
	defaultNameBytes   = 4096
	defaultTotalBytes  = 1 << 46
	defaultMetaKeys    = 1 << 16
)

func (l Limits) withDefaults() Limits {
	if l.HeaderBytes <= 0 {
		l.HeaderBytes = defaultHeaderBytes
	}
	if l.Tensors <= 0 {
		l.Tensors = defaultTensors
	}
	if l.Dims <= 0 {
		l.Dims = defaultDims
	}
	if l.NameBytes <= 0 {
		l.NameBytes = defaultNameBytes
	}
	if l.TotalBytes <= 0 {
		l.TotalBytes = defaultTotalBytes
	}
	if l.MetaKeys <= 0 {
		l.MetaKeys = defaultMetaKeys
	}
	return l
}

// inflated returns what the compressed members of a file of size bytes may expand to.
func (l Limits) inflated(size int64) int64 {
	const floor, factor = 1 << 30, 64
	if l.InflatedBytes > 0 {
		return l.InflatedBytes
	}
	return floor + factor*min(size, math.MaxInt64/factor-floor)
}
