// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/cpu/internal/attend"
	"github.com/kvist-project/kvist/cpu/internal/codec"
	"github.com/kvist-project/kvist/quant"
)

// EnvISA is the environment variable that chooses the instruction set if Options does not. Only
// Open reads it.
const EnvISA = "KVIST_CPU"

// knownISAs are the instruction sets for which some build of kvist has kernels.
var knownISAs = []string{"generic", "avx2", "avx512"}

// ISAs lists the instruction sets that this build has kernels for and this machine supports, the
// best last.
func ISAs() []string {
	var names []string
	for _, k := range available() {
		names = append(names, k.attend.ISA())
	}
	return names
}

// kernels are the kernels of one instruction set.
type kernels struct {
	attend *attend.Kernels
	codec  *codec.Kernels
}

func available() []kernels {
	list := []kernels{{attend.Generic(), codec.Generic()}}
	for _, a := range attend.Native() {
		for _, c := range codec.Native() {
			if a.ISA() == c.ISA() {
				list = append(list, kernels{a, c})
			}
		}
	}
	return list
}

// chooseISA resolves Options.ISA.
//
// Errors: quant.ErrUnsupported for an unknown name, quant.ErrUnavailable for an instruction set
// that this build or this machine does not have. Both list the available ones.
func chooseISA(asked string, getenv func(string) string) (*attend.Kernels, *codec.Kernels, error) {
	source := "Options.ISA"
	if asked == "" {
		asked, source = getenv(EnvISA), EnvISA
	}
	have := available()
	if asked == "" {
		best := have[len(have)-1]
		return best.attend, best.codec, nil
	}
	for _, k := range have {
		if k.attend.ISA() == asked {
			return k.attend, k.codec, nil
		}
	}
	cause, what := quant.ErrUnsupported, "not an instruction set of kvist"
	if slices.Contains(knownISAs, asked) {
		cause, what = quant.ErrUnavailable, "not in this build or machine"
	}
	return nil, nil, fmt.Errorf("kvist/cpu: opening: %s %q: %s, which has %s: %w", source, asked,
		what, strings.Join(ISAs(), ", "), cause)
}

func environment(key string) string { return os.Getenv(key) }
