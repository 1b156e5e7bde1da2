// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package vectors

import (
	"fmt"
	"os"

	"github.com/kvist-project/kvist/quant"
)

// mapFile reports that files cannot be mapped here.
func mapFile(*os.File, int64) ([]byte, func() error, error) {
	return nil, nil, fmt.Errorf("kvist/vectors: mapping: %w", quant.ErrUnsupported)
}
