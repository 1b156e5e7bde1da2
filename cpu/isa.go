// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/quant"
)

// EnvISA is the environment variable that chooses the instruction set where Options leave it
// open. It is read by Open, and nowhere else.
const EnvISA = "KVIST_CPU"

const isaGeneric = "generic"

// ISAs lists the instruction sets that this build has kernels for, the best last.
func ISAs() []string { return []string{isaGeneric} }

// chooseISA resolves Options.ISA.
//
// Errors: quant.ErrUnsupported naming what this build has.
func chooseISA(asked string, getenv func(string) string) (string, error) {
	source := "Options.ISA"
	if asked == "" {
		asked, source = getenv(EnvISA), EnvISA
	}
	have := ISAs()
	if asked == "" {
		return have[len(have)-1], nil
	}
	if !slices.Contains(have, asked) {
		return "", fmt.Errorf("kvist/cpu: opening: %s %q: this build has %s: %w", source, asked,
			strings.Join(have, ", "), quant.ErrUnsupported)
	}
	return asked, nil
}

func environment(key string) string { return os.Getenv(key) }
