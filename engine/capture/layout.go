// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
)

// layout describes how the data of a tensor are stored, if not as little-endian elements in C order
// from TensorInfo.Offset on.
type layout struct {
	swap    bool            // elements are big-endian
	fortran bool            // the first dim runs fastest
	member  *member         // the member of an .npz that holds the data; nil: the file itself
	groups  gguf.TensorType // the GGUF type, if grouped
	grouped bool            // the elements are float32, stored in groups with a scale each
}

// readData reads len(dst) bytes of a tensor from offset off of its data, as little-endian elements
// in C order. The range lies within the tensor.
func (f *file) readData(t *TensorInfo, off int64, dst []byte) error {
	l := t.lay
	switch {
	case l == nil:
		return f.readFull(sectionTensor, t.Name, t.Offset+off, dst)
	case !l.swap && !l.fortran && !l.grouped:
		return l.bytes(f, t, off, dst)
	}
	size := t.elementSize()
	if off%size == 0 && int64(len(dst))%size == 0 {
		return l.elements(f, t, off/size, dst)
	}
	// Raw access may start and end within an element.
	buf := f.scratch.Get().(*[]byte)
	defer f.scratch.Put(buf)
	for len(dst) > 0 {
		skip := off % size
		n := min((skip+int64(len(dst))+size-1)/size*size, scratchBytes)
		if err := l.elements(f, t, off/size, (*buf)[:n]); err != nil {
			return err
		}
		k := copy(dst, (*buf)[skip:n])
		dst, off = dst[k:], off+int64(k)
	}
	return nil
}

// elementSize returns the size of one element. Only types of whole bytes have a layout.
func (t *TensorInfo) elementSize() int64 { return dtypes[dtypeRank(t.DTypeName)].bits / 8 }

// bytes reads stored bytes.
func (l *layout) bytes(f *file, t *TensorInfo, off int64, dst []byte) error {
	if l.member != nil {
		return l.member.read(f, t.Name, off, dst)
	}
	return f.readFull(sectionTensor, t.Name, t.Offset+off, dst)
}

// elements reads whole elements from number first on, in C order.
func (l *layout) elements(f *file, t *TensorInfo, first int64, dst []byte) error {
	size := t.elementSize()
	var err error
	switch {
	case l.grouped:
		return l.readGroups(f, t, first, dst)
	case l.fortran:
		err = l.gather(f, t, first, dst)
	default:
		err = l.bytes(f, t, first*size, dst)
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
