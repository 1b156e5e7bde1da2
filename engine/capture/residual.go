// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"math"

	"github.com/kvist-project/kvist/quant"
)

// restResidual ends the name of a layer's residual mean squares.
const restResidual = "residual_ms"

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

// checkResidual returns the channels of a tensor residual_ms.
func (r *kvReader) checkResidual(info TensorInfo) (int, error) {
	if err := r.wantDType(info, "F32"); err != nil {
		return 0, err
	}
	if len(info.Shape) != 1 || info.Shape[0] < 1 {
		return 0, r.tensorError(info, corruptf("shape %v, want [hidden]", info.Shape))
	}
	if info.Shape[0] > quant.MaxDim {
		return 0, r.tensorError(info, unsupportedf("%d channels, want at most %d", info.Shape[0],
			quant.MaxDim))
	}
	return int(info.Shape[0]), nil
}

// checkHidden checks that the residual mean squares of all layers have the channels of the model's
// hidden state, which the output projection of a layer tells too.
func (r *kvReader) checkHidden() error {
	hidden := 0
	for _, n := range r.kv.layers {
		l := r.kv.parts[n]
		if l.residual == 0 {
			continue
		}
		info, _ := r.src.Lookup(markName(n, restResidual))
		if l.oWeight.f != nil && l.oWeight.rows != l.residual {
			return r.tensorError(info, corruptf("hidden size %d, o_weight of the layer has %d", l.residual,
				l.oWeight.rows))
		}
		if hidden != 0 && l.residual != hidden {
			return r.tensorError(info, corruptf("hidden size %d, an earlier layer has %d", l.residual, hidden))
		}
		hidden = l.residual
	}
	return nil
}
