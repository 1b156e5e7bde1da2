// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/kvist-project/kvist/engine/gguf"
)

// Limits on the metadata of a GGUF, which are not kept. No vocabulary has more strings.
const (
	ggufArray   = 1 << 22
	ggufNesting = 1
)

// parseGGUF reads the list of tensors of a GGUF. It ignores the metadata, which describe a model
// and not activations.
func (s *Source) parseGGUF(lim Limits) error {
	f, err := gguf.Read(s.r, s.size, s.name, gguf.Limits{MaxTensors: lim.Tensors,
		MaxKeys: lim.MetaKeys, MaxMetaBytes: lim.HeaderBytes, MaxArrayLen: ggufArray,
		MaxNesting: ggufNesting})
	if err != nil {
		var fe *gguf.FileError
		if errors.As(err, &fe) {
			return s.formatError(SectionHeader, "", fe.Offset,
				fmt.Errorf("%s: %w", fe.Section, fe.Err))
		}
		return s.formatError(SectionHeader, "", -1, err)
	}
	for _, t := range f.Tensors() {
		if err := s.checkName(t.Name, t.Offset(), lim); err != nil {
			return err
		}
		info := TensorInfo{Decl: Decl{Name: t.Name, DTypeName: t.Type.String(),
			Shape: slices.Clone(t.Dims)}, Offset: t.Offset(), Bytes: t.Bytes()}
		slices.Reverse(info.Shape) // GGUF names the fastest dim first
		if values, _ := t.Type.Layout(); values > 1 {
			info.Stored = info.DTypeName
			info.DTypeName = "F32"
			if info.Bytes, err = dataBytes(info.DTypeName, info.Shape); err != nil {
				return s.formatError(SectionTensor, t.Name, t.Offset(), err)
			}
			info.lay = &layout{grouped: true, groups: t.Type}
		}
		s.tensors = append(s.tensors, info)
	}
	slices.SortStableFunc(s.tensors, func(a, b TensorInfo) int { return cmp.Compare(a.Offset, b.Offset) })
	return nil
}

// checkName checks the name of a tensor, because the result will be written as safetensors.
func (s *Source) checkName(name string, off int64, lim Limits) error {
	switch {
	case len(name) > lim.NameBytes:
		return s.formatError(SectionHeader, "", off,
			tooLargef("tensor name of %d bytes, want at most %d", len(name), lim.NameBytes))
	case !utf8.ValidString(name) || name == "" || name == metadataKey:
		return s.formatError(SectionHeader, "", off,
			unsupportedf("a tensor named %q, want another name, in UTF-8", name))
	}
	return nil
}

// readGroups reads float32 values of a tensor stored in groups, from value first on.
func (l *layout) readGroups(s *Source, t *TensorInfo, first int64, dst []byte) error {
	perGroup, size := l.groups.Layout()
	buf := s.scratch.Get().(*[]byte)
	defer s.scratch.Put(buf)
	values := make([]float32, perGroup)
	for len(dst) > 0 {
		g, skip := first/perGroup, first%perGroup
		n := min((skip+int64(len(dst)/4)+perGroup-1)/perGroup, scratchBytes/size)
		raw := (*buf)[:n*size]
		if err := s.readFull(SectionTensor, t.Name, t.Offset+g*size, raw); err != nil {
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
