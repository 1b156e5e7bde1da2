// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/backend/backendtest"
)

func TestBackend_Suite(t *testing.T) {
	for _, want := range strings.Split(os.Getenv("KVIST_REQUIRE"), ",") {
		if slices.Contains(knownISAs, want) {
			require.Contains(t, ISAs(), want, "KVIST_REQUIRE")
		}
	}
	isas := ISAs()
	if raceEnabled { // which sees no assembly: the plain code, and the Go around that of the best set, are enough
		isas = slices.Compact([]string{isas[0], isas[len(isas)-1]})
	}
	for _, isa := range isas {
		t.Run("isa="+isa, func(t *testing.T) {
			backendtest.RunBackend(t, func(t *testing.T) backend.Backend {
				b, err := Open(Options{ISA: isa, Workers: 3})
				require.NoError(t, err)
				return b
			})
		})
	}
}
