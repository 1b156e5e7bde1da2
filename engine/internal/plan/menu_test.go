// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestClassOf(t *testing.T) {
	lm3, lm2 := quant.Coding{Format: quant.LM3}, quant.Coding{Format: quant.LM2}
	c, err := ClassOf([]quant.Coding{lm3, lm2}, nil, 32, 64)
	require.NoError(t, err)
	require.Equal(t, []Option{
		{Bytes: int64(lm3.PackedBytes(32, 64)), Damage: lm3.RelativeError()},
		{Bytes: int64(lm2.PackedBytes(32, 64)), Damage: lm2.RelativeError()},
	}, c.Options)
	bent, err := ClassOf([]quant.Coding{lm3, lm2}, &Curve{2: 1.5, 3: 1}, 32, 64)
	require.NoError(t, err)
	require.Equal(t, c.Options[0], bent.Options[0])
	require.InDelta(t, 1.5*lm2.RelativeError(), bent.Options[1].Damage, 1e-12)
	_, err = ClassOf([]quant.Coding{lm3}, nil, 32, 60)
	require.ErrorIs(t, err, quant.ErrUnsupported)
}
