// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// shapef returns an error of category quant.ErrShape.
func shapef(op, format string, args ...any) error {
	return fmt.Errorf("kvist/tuning: %s: %s: %w", op, fmt.Sprintf(format, args...), quant.ErrShape)
}
