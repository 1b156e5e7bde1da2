// SPDX-License-Identifier: Apache-2.0

package kvfile_test

import (
	"context"
	"fmt"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/auto"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
)

// compressTo is the README's example: a capture to a file of 3 bits a value.
func compressTo(path string, src *capture.Source) error {
	be, err := auto.Open("auto", auto.Options{})
	if err != nil {
		return err
	}
	defer be.Close()
	out, err := atomicfile.Create(path, false)
	if err != nil {
		return err
	}
	defer out.Abort() // does nothing after Commit
	cfg := kvfile.DefaultConfig()
	cfg.Bits = 3
	res, err := kvfile.Compress(context.Background(), src, out, be, cfg, nil, nil)
	if err != nil {
		return err
	}
	fmt.Printf("%.2f bits/value, %.1fx\n", res.BitsPerValue, res.Ratio)
	return out.Commit()
}
