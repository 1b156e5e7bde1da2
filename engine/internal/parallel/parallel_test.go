// SPDX-License-Identifier: Apache-2.0

package parallel_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

func TestEachOf_EveryIndexOnce(t *testing.T) {
	for _, workers := range []int{1, 3, 100} {
		calls := make([]atomic.Int32, 50)
		require.NoError(t, parallel.EachOf(t.Context(), workers, len(calls), func(i int) error {
			calls[i].Add(1)
			return nil
		}))
		for i := range calls {
			require.EqualValues(t, 1, calls[i].Load(), "index %d", i)
		}
	}
	require.NoError(t, parallel.Each(t.Context(), 0, nil))
}

// Of several errors that of the lowest index comes back, and calls end soon after.
func TestEachOf_FirstError(t *testing.T) {
	var calls atomic.Int32
	err := parallel.EachOf(t.Context(), 4, 1000, func(i int) error {
		calls.Add(1)
		if i >= 7 {
			return fmt.Errorf("index %d: %w", i, quant.ErrShape)
		}
		return nil
	})
	require.EqualError(t, err, fmt.Sprintf("index 7: %v", quant.ErrShape))
	require.Less(t, calls.Load(), int32(1000))
}

func TestEach_Cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, parallel.Each(ctx, 5, func(int) error {
		t.Error("called after the context was cancelled")
		return nil
	}), context.Canceled)
}
