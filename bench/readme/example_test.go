// SPDX-License-Identifier: Apache-2.0

package readme_test

import (
	"context"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
)

// compress writes a capture to w at 3 bits per value, on the best backend of the machine.
func compress(ctx context.Context, w io.Writer, src *capture.Source) (*kvfile.Result, error) {
	be, err := auto.Open("auto", auto.Options{})
	if err != nil {
		return nil, err
	}
	defer be.Close()
	cfg := kvfile.DefaultConfig()
	cfg.Bits = 3
	return kvfile.Compress(ctx, src, w, kvfile.WithConfig(cfg), kvfile.WithBackend(be))
}

func Example() {
	src, err := capture.Open("../../testdata/smollm2-sqlite-1k.safetensors", capture.Limits{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer src.Close()
	res, err := compress(context.Background(), io.Discard, src)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%.2f bits/value\n", res.BitsPerValue)
	// Output: 3.00 bits/value
}
