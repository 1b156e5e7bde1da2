// SPDX-License-Identifier: Apache-2.0

package importance_test

import (
	"fmt"

	"github.com/kvist-project/kvist/importance"
	"github.com/kvist-project/kvist/quant"
)

// A cache follows one KV head: rows as they come, attention as queries are answered, weights
// when a segment is to be planned.
func ExampleTracker() {
	weighting, err := importance.ParseWeighting("relevance=1,window=64,floor=0.1,max=8")
	if err != nil {
		fmt.Println(err)
		return
	}
	tracker, err := importance.NewTracker(weighting, 8, 8, quant.Rope{})
	if err != nil {
		fmt.Println(err)
		return
	}
	k := quant.Rows{Dim: 8, Data: make([]float32, 6*8)}
	if err := tracker.Append(k, k, nil); err != nil {
		fmt.Println(err)
		return
	}
	// What backend.Relevance (power 2) returned for two queries of one head each.
	sums := importance.RowSums{Sum: []float32{0.02, 0.02, 0.5, 0.02, 0.02, 0}}
	err = tracker.Observe(importance.Queries{First: 4, N: 2, Group: 1}, sums)
	if err != nil {
		fmt.Println(err)
		return
	}
	weights := make([]float32, tracker.Tokens())
	collapse, err := tracker.Weights(weights, k)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%.2f\n", weights)
	fmt.Printf("spread over %.1f of %d tokens\n", collapse.Effective, collapse.Rows)
	// Output:
	// [0.66 0.66 3.28 0.66 0.66 0.10]
	// spread over 2.8 of 6 tokens
}
