// SPDX-License-Identifier: Apache-2.0

package tuning

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/bench/methods"
	"github.com/kvist-project/kvist/engine/model"
)

var openModel = sync.OnceValues(func() (*model.Model, error) {
	path, err := model.Find()
	if err != nil {
		return nil, err
	}
	return model.Open(path, model.Options{})
})

// realModel returns the model, or skips the test if it does not exist.
func realModel(t testing.TB) *model.Model {
	t.Helper()
	if testing.Short() {
		t.Skip("the real model takes seconds, minutes under the race detector: not with -short")
	}
	if _, err := model.Find(); err != nil {
		if strings.Contains(os.Getenv("KVIST_REQUIRE"), "model") {
			t.Fatal(err)
		}
		t.Skip(err) // it says to run make model
	}
	m, err := openModel()
	require.NoError(t, err)
	return m
}

// named returns a method by its name.
func named(t testing.TB, name string) methods.Method {
	t.Helper()
	m, err := methods.ByName(name)
	require.NoError(t, err)
	return m
}
