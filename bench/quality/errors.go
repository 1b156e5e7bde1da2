// SPDX-License-Identifier: Apache-2.0

package quality

import (
	"fmt"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/quant"
)

func shapef(op, format string, args ...any) error {
	return fmt.Errorf("kvist/quality: %s: %s: %w", op, fmt.Sprintf(format, args...), quant.ErrShape)
}

func methodErr(op string, m methods.Method, err error) error {
	return fmt.Errorf("kvist/quality: %s: method %s: %w", op, m.Name(), err)
}
