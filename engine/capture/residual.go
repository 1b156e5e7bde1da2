// SPDX-License-Identifier: Apache-2.0

package capture

import "github.com/kvist-project/kvist/quant"

// restResidual ends the name of a layer's residual mean squares.
const restResidual = "residual_ms"

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
