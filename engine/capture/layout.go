// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
)

// layout says how the data of a tensor are stored where they are not what they are read as:
// little-endian elements in C order from TensorInfo.Offset on.
type layout struct {
	swap    bool            // elements are big-endian
	fortran bool            // the first dim runs fastest
	member  *member         // of an .npz that holds the data, nil: the file itself
	groups  gguf.TensorType // of GGUF, where grouped
	grouped bool            // the elements are float32, stored in groups with a scale each
}

// readData reads len(dst) bytes of a tensor from byte off of its data, as little-endian elements
// in C order. The range is within the tensor.
func (s *Source) readData(t *TensorInfo, off int64, dst []byte) error {
	l := t.lay
	switch {
	case l == nil:
		return s.readFull(SectionTensor, t.Name, t.Offset+off, dst)
	case !l.swap && !l.fortran && !l.grouped:
		return l.bytes(s, t, off, dst)
	}
	size := t.elementSize()
	if off%size == 0 && int64(len(dst))%size == 0 {
		return l.elements(s, t, off/size, dst)
	}
	// Raw access may start and end within an element.
	buf := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(buf)
	for len(dst) > 0 {
		skip := off % size
		n := min((skip+int64(len(dst))+size-1)/size*size, scratchBytes)
		if err := l.elements(s, t, off/size, (*buf)[:n]); err != nil {
			return err
		}
		k := copy(dst, (*buf)[skip:n])
		dst, off = dst[k:], off+int64(k)
	}
	return nil
}

// elementSize returns the bytes of one element. Only element types of whole bytes have a layout.
func (t *TensorInfo) elementSize() int64 { return dtypes[dtypeRank(t.DTypeName)].bits / 8 }

// bytes reads stored bytes.
func (l *layout) bytes(s *Source, t *TensorInfo, off int64, dst []byte) error {
	if l.member != nil {
		return l.member.read(s, t.Name, off, dst)
	}
	return s.readFull(SectionTensor, t.Name, t.Offset+off, dst)
}

// elements reads whole elements from the one of that number, in C order.
func (l *layout) elements(s *Source, t *TensorInfo, first int64, dst []byte) error {
	size := t.elementSize()
	var err error
	switch {
	case l.grouped:
		return l.readGroups(s, t, first, dst)
	case l.fortran:
		for at := int64(0); at < int64(len(dst)) && err == nil; at += gatherElements * size {
			err = l.gather(s, t, first+at/size, dst[at:min(at+gatherElements*size, int64(len(dst)))])
		}
	default:
		err = l.bytes(s, t, first*size, dst)
	}
	if l.swap && err == nil {
		unit := int(size)
		if t.DTypeName == "C64" { // two float32
			unit /= 2
		}
		for b := dst; len(b) > 0; b = b[unit:] {
			slices.Reverse(b[:unit])
		}
	}
	return err
}

const (
	// gatherElements is how many elements of an array in Fortran order are looked for at a time.
	gatherElements = 1 << 16
	// gatherGap is how many bytes between two wanted ones are read rather than skipped.
	gatherGap = 4096
	// gatherBits is what an index below gatherElements takes beside a place in the file.
	gatherBits = 16
	// maxGather is the largest array in Fortran order: places have the other bits.
	maxGather = 1 << 47
)

// gather reads at most gatherElements elements of an array in Fortran order: it works out where
// each of them lies and reads those in the order of the file, neighbours at once.
func (l *layout) gather(s *Source, t *TensorInfo, first int64, dst []byte) error {
	size := t.elementSize()
	places := make([]uint64, int64(len(dst))/size) // place << gatherBits | index in dst
	index, stride := make([]int64, len(t.Shape)), make([]int64, len(t.Shape))
	place, step := int64(0), int64(1)
	for i, d := range t.Shape {
		stride[i] = step
		step *= d
	}
	for i := len(t.Shape) - 1; i >= 0; i-- {
		index[i] = first % t.Shape[i]
		first /= t.Shape[i]
		place += index[i] * stride[i]
	}
	for i := range places {
		places[i] = uint64(place)<<gatherBits | uint64(i)
		for d := len(index) - 1; d >= 0; d-- {
			index[d]++
			place += stride[d]
			if index[d] < t.Shape[d] {
				break
			}
			place -= index[d] * stride[d]
			index[d] = 0
		}
	}
	slices.Sort(places)
	buf := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(buf)
	for at := 0; at < len(places); {
		from := int64(places[at] >> gatherBits)
		end, to := at+1, from+1
		for ; end < len(places); end++ {
			next := int64(places[end] >> gatherBits)
			if (next-to)*size > gatherGap || (next+1-from)*size > scratchBytes {
				break
			}
			to = next + 1
		}
		run := (*buf)[:(to-from)*size]
		if err := l.bytes(s, t, from*size, run); err != nil {
			return err
		}
		for ; at < end; at++ {
			i := int64(places[at]&(1<<gatherBits-1)) * size
			j := (int64(places[at]>>gatherBits) - from) * size
			copy(dst[i:i+size], run[j:j+size])
		}
	}
	return nil
}
