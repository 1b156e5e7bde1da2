// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

func (s *Source) hasSide(name string, next bool) bool {
	_, ok := s.Lookup(sideName(name, next))
	return ok && s.kv != nil
}

// ReadTokens reads the numbers of tokens [first, first+len(dst)). With next: of the tokens after.
//
// Errors: quant.ErrShape; quant.ErrUnsupported if the capture holds no token numbers;
// quant.ErrClosed; *FormatError.
func (s *Source) ReadTokens(next bool, first int, dst []int32) error {
	return s.readSide(nameTokens, next, first, len(dst), func(at int, raw []byte) error {
		for i := range len(raw) / 4 {
			dst[at+i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		return nil
	})
}

// ReadSurprisal reads -log p, in nats, of tokens [first, first+len(dst)).
//
// Errors: as ReadTokens.
func (s *Source) ReadSurprisal(next bool, first int, dst []float32) error {
	return s.readSide(nameSurprisal, next, first, len(dst), func(at int, raw []byte) error {
		convertF32(quant.Float32, dst[at:at+len(raw)/4], raw)
		return nil
	})
}

// ReadPositions reads the positions of tokens [first, first+len(dst)). Without stored positions
// they count up from first_position; those of the tokens after count up from the last position
// before them.
//
// Errors: quant.ErrShape, quant.ErrClosed, *FormatError (also for a negative position).
func (s *Source) ReadPositions(next bool, first int, dst []int64) error {
	if err := s.checkTokens(namePositions, next, first, len(dst)); err != nil {
		return err
	}
	if s.hasSide(namePositions, next) {
		bad := -1
		err := s.readSide(namePositions, next, first, len(dst), func(at int, raw []byte) error {
			for i := range len(raw) / 4 {
				dst[at+i] = int64(int32(binary.LittleEndian.Uint32(raw[4*i:])))
				if dst[at+i] < 0 && bad < 0 {
					bad = at + i
				}
			}
			return nil
		})
		if err == nil && bad >= 0 {
			name := sideName(namePositions, next)
			t, _ := s.Lookup(name)
			err = s.f.formatError(sectionTensor, name, t.Offset+4*int64(first+bad),
				unsupportedf("position %d of token %d, want 0 or more", dst[bad], first+bad))
		}
		return err
	}
	base := s.info.FirstPosition
	if next {
		base += int64(s.kv.tokens)
		if s.kv.tokens > 0 && s.hasSide(namePositions, false) {
			var last [1]int64
			if err := s.ReadPositions(false, s.kv.tokens-1, last[:]); err != nil {
				return err
			}
			base = last[0] + 1
		}
	}
	for i := range dst {
		dst[i] = base + int64(first) + int64(i)
	}
	return nil
}

// ReadKept reads, for tokens [first, first+len(dst)) of one KV head, whether they were kept: 0 is a
// dropped token. Without the tensor "kept" every token was kept.
//
// Errors: quant.ErrShape, quant.ErrClosed, *FormatError.
func (s *Source) ReadKept(layer, kvHead, first int, dst []uint8) error {
	at, err := s.locateMark(layer, kvHead, first, len(dst), "kept")
	if err != nil {
		return err
	}
	if !s.layer(layer).kept {
		for i := range dst {
			dst[i] = 1
		}
		return nil
	}
	t, _ := s.Lookup(markName(layer, "kept"))
	return s.f.readData(&t, at, dst)
}

// ReadBias reads the row biases, without log-count, of tokens [first, first+len(dst)) of one KV
// head. They are 0 without the tensor "bias".
//
// Errors: as ReadKept.
func (s *Source) ReadBias(layer, kvHead, first int, dst []float32) error {
	at, err := s.locateMark(layer, kvHead, first, len(dst), "bias")
	if err != nil {
		return err
	}
	if !s.layer(layer).bias {
		clear(dst)
		return nil
	}
	t, _ := s.Lookup(markName(layer, "bias"))
	return s.f.pieces(&t, at, len(dst), func(at int, raw []byte) error {
		convertF32(quant.Float32, dst[at:at+len(raw)/4], raw)
		return nil
	})
}

// ResidualDim returns the number of channels of the layer's residual mean squares, the hidden size of
// the model; 0 if the capture does not hold them.
func (s *Source) ResidualDim(layer int) int {
	if l := s.layer(layer); l != nil {
		return l.residual
	}
	return 0
}

// ReadResidual reads the mean square of each channel of the residual stream after a layer, over the
// captured tokens: dst is [ResidualDim].
//
// Errors: quant.ErrShape, quant.ErrClosed; *FormatError, also for a value that is negative or not
// finite.
func (s *Source) ReadResidual(layer int, dst []float32) error {
	name := markName(layer, restResidual)
	n := s.ResidualDim(layer)
	switch {
	case s.f.closed.Load():
		return s.f.errClosed()
	case n == 0:
		return callErrorf("read %s: tensor %q is not in the file", s.f.name, name)
	case len(dst) != n:
		return callErrorf("read %s: tensor %q: dst has %d values, want %d", s.f.name, name, len(dst), n)
	}
	t, _ := s.Lookup(name)
	err := s.f.pieces(&t, 0, n, func(at int, raw []byte) error {
		convertF32(quant.Float32, dst[at:at+len(raw)/4], raw)
		return nil
	})
	if err != nil {
		return err
	}
	for i, v := range dst {
		if !(v >= 0) || math.IsInf(float64(v), 0) {
			return s.f.formatError(sectionTensor, name, t.Offset+4*int64(i),
				corruptf("value %d is %v, want a finite number from 0 up", i, v))
		}
	}
	return nil
}

func markName(layer int, rest string) string {
	return fmt.Sprintf("%s%d.%s", layerPrefix, layer, rest)
}

// locateMark checks a range of a [kv_heads, tokens] tensor and returns the number of its first
// element.
func (s *Source) locateMark(layer, kvHead, first, n int, rest string) (int64, error) {
	name := markName(layer, rest)
	if s.layer(layer) == nil {
		return 0, callErrorf("read %s: tensor %q: layer %d is not in the file",
			s.f.name, name, layer)
	}
	if err := s.checkTokens(name, false, first, n); err != nil {
		return 0, err
	}
	if kvHead < 0 || kvHead >= s.kv.geo.KVHeads {
		return 0, callErrorf("read %s: tensor %q: kv_head %d, want [0, %d)",
			s.f.name, name, kvHead, s.kv.geo.KVHeads)
	}
	return int64(kvHead)*int64(s.kv.tokens) + int64(first), nil
}

func (s *Source) readSide(name string, next bool, first, n int, use func(int, []byte) error) error {
	if err := s.checkTokens(name, next, first, n); err != nil {
		return err
	}
	name = sideName(name, next)
	t, ok := s.Lookup(name)
	if !ok {
		return s.f.formatError(sectionHeader, "", -1,
			unsupportedf("tensor %q is not in the capture", name))
	}
	return s.f.pieces(&t, int64(first), n, use)
}

// checkTokens checks a range of tokens.
func (s *Source) checkTokens(name string, next bool, first, n int) error {
	if s.f.closed.Load() {
		return s.f.errClosed()
	}
	if s.kv == nil {
		return callErrorf("read %s: %s: the file is not a KV capture", s.f.name, name)
	}
	have := s.kv.tokens
	if next {
		have = s.kv.tokensNext
	}
	if first < 0 || first > have || n > have-first {
		return callErrorf("read %s: %s: %d tokens from token %d, there are %d",
			s.f.name, sideName(name, next), n, first, have)
	}
	return nil
}
