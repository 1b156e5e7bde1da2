// SPDX-License-Identifier: Apache-2.0

package memo_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/internal/memo"
)

type (
	keyA struct{ n int }
	keyB struct{ n int }
)

func TestOf(t *testing.T) {
	var m memo.Memo
	calls := 0
	get := func(key any, v int) int {
		got, err := memo.Of(&m, key, func() (int, error) { calls++; return v, nil })
		require.NoError(t, err)
		return got
	}
	require.Equal(t, 1, get(keyA{1}, 1))
	require.Equal(t, 1, get(keyA{1}, 2), "held")
	require.Equal(t, 3, get(keyB{1}, 3), "a key of another type is another key")
	require.Equal(t, 2, calls)

	bad := errors.New("bad")
	_, err := memo.Of(&m, keyA{2}, func() (int, error) { return 0, bad })
	require.ErrorIs(t, err, bad)
	require.Equal(t, 4, get(keyA{2}, 4), "errors are not held")

	v, err := memo.Of[int](nil, keyA{1}, func() (int, error) { return 5, nil })
	require.NoError(t, err)
	require.Equal(t, 5, v)
}
