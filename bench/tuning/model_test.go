// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
)

// named returns a method by its name.
func named(t testing.TB, name string) methods.Method {
	t.Helper()
	m, err := methods.ByName(name)
	require.NoError(t, err)
	return m
}
