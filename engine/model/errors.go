// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"

	"github.com/kvist-project/kvist/quant"
)

// shapef returns an error of category quant.ErrShape. op names the operation that failed.
func shapef(op, format string, a ...any) error {
	return fmt.Errorf("kvist/model: %s: %s: %w", op, fmt.Sprintf(format, a...), quant.ErrShape)
}

// corruptf returns a cause of category quant.ErrCorrupt.
func corruptf(format string, a ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), quant.ErrCorrupt)
}

// unsupportedf returns a cause of category quant.ErrUnsupported: "not supported: what".
func unsupportedf(format string, a ...any) error {
	return fmt.Errorf("%w: %s", quant.ErrUnsupported, fmt.Sprintf(format, a...))
}
