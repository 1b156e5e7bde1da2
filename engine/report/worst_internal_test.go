// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/internal/damage"
)

// The worst head is the one with the largest relative error, the worst row the one with the largest error
// against the rows of its head: not one that is nearly zero.
func TestWorstOf(t *testing.T) {
	heads := make([]headSum, 3) // of head 2 nothing was measured
	heads[0].add(damage.Sum{Err: 1, Ref: 100}, 0)
	heads[0].add(damage.Sum{Err: 0.5, Ref: 0.1}, 1)
	heads[1].add(damage.Sum{Err: 0.2, Ref: 1}, 0)
	heads[1].add(damage.Sum{Err: 0.3, Ref: 1}, 7)
	head, token := worstOf(heads)
	require.Equal(t, Worst{Head: 1, Token: -1, Error: 0.25}, head)
	require.Equal(t, Worst{Head: 1, Token: 7, Error: 0.3}, token)
	head, token = worstOf(heads[2:])
	require.True(t, math.IsNaN(head.Error) && math.IsNaN(token.Error) && head.Head == -1 && token.Token == -1)
	heads[2].add(damage.Sum{Err: 1}, 3) // error where there was nothing
	head, _ = worstOf(heads)
	require.Equal(t, Worst{Head: 2, Token: -1, Error: math.Inf(1)}, head)
}

func TestWorstFuture(t *testing.T) {
	head, token := worstFuture([][]damage.Sum{
		{{Err: 1, Ref: 10}, {Err: 1, Ref: 10}},
		{{Err: 0, Ref: 10}, {Err: 2, Ref: 5}},
	})
	require.Equal(t, Worst{Head: 1, Token: -1, Error: 2.0 / 15}, head)
	require.Equal(t, Worst{Head: -1, Token: 1, Error: 3.0 / 15}, token)
	head, token = worstFuture(nil)
	require.True(t, math.IsNaN(head.Error) && math.IsNaN(token.Error))
}
