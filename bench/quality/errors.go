// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"fmt"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/quant"
)

// shapef returns an error of category quant.ErrShape.
func shapef(op, format string, args ...any) error {
	return fmt.Errorf("kvist/quality: %s: %s: %w", op, fmt.Sprintf(format, args...), quant.ErrShape)
}

// methodErr adds the name of a method to its error.
func methodErr(op string, m methods.Method, err error) error {
	return fmt.Errorf("kvist/quality: %s: method %s: %w", op, m.Name(), err)
}
