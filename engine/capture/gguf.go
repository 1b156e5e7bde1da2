// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvist-project/kvist/engine/gguf"
)

// Limits on the metadata of a GGUF, which are not kept. No vocabulary has more strings.
const (
	ggufArray   = 1 << 22
	ggufNesting = 1
)

// parseGGUF reads the list of tensors of a GGUF. It ignores the metadata, which describe a model
// and not activations.
func parseGGUF(f *file, lim Limits) ([]TensorInfo, error) {
	g, err := gguf.Read(f.r, f.size, f.name, gguf.Limits{MaxTensors: lim.Tensors,
		MaxKeys: lim.MetaKeys, MaxMetaBytes: lim.HeaderBytes, MaxArrayLen: ggufArray,
		MaxNesting: ggufNesting})
	if err != nil {
		var fe *gguf.FileError
		if errors.As(err, &fe) {
			return nil, f.formatError(sectionHeader, "", fe.Offset,
				fmt.Errorf("%s: %w", fe.Section, fe.Err))
		}
		return nil, f.formatError(sectionHeader, "", -1, err)
	}
	var tensors []TensorInfo
	for _, t := range g.Tensors() {
		if err := f.checkName(t.Name, t.Offset(), lim); err != nil {
			return nil, err
		}
		info := TensorInfo{Decl: Decl{Name: t.Name, DTypeName: t.Type.String(),
			Shape: slices.Clone(t.Dims)}, Offset: t.Offset(), Bytes: t.Bytes()}
		slices.Reverse(info.Shape) // GGUF names the fastest dim first
		if values, _ := t.Type.Layout(); values > 1 {
			info.Stored = info.DTypeName
			info.DTypeName = "F32"
			if info.Bytes, err = dataBytes(info.DTypeName, info.Shape); err != nil {
				return nil, f.formatError(sectionTensor, t.Name, t.Offset(), err)
			}
			info.lay = &layout{grouped: true, groups: t.Type}
		}
		tensors = append(tensors, info)
	}
	slices.SortStableFunc(tensors, func(a, b TensorInfo) int { return cmp.Compare(a.Offset, b.Offset) })
	return tensors, nil
}

// readGroups reads float32 values of a tensor stored in groups, from value first on.
func (l *layout) readGroups(f *file, t *TensorInfo, first int64, dst []byte) error {
	perGroup, size := l.groups.Layout()
	buf := f.scratch.Get().(*[]byte)
	defer f.scratch.Put(buf)
	values := make([]float32, perGroup)
	for len(dst) > 0 {
		g, skip := first/perGroup, first%perGroup
		n := min((skip+int64(len(dst)/4)+perGroup-1)/perGroup, scratchBytes/size)
		raw := (*buf)[:n*size]
		if err := f.readFull(sectionTensor, t.Name, t.Offset+g*size, raw); err != nil {
			return err
		}
		for ; len(raw) > 0; raw = raw[size:] {
			gguf.DecodeGroup(l.groups, raw, values)
			for _, v := range values[skip:min(perGroup, skip+int64(len(dst)/4))] {
				binary.LittleEndian.PutUint32(dst, math.Float32bits(v))
				dst, first = dst[4:], first+1
			}
			skip = 0
		}
	}
	return nil
}
