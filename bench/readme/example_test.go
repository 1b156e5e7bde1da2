// SPDX-License-Identifier: Apache-2.0

package readme_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvist-project/kvist/engine/kvfile"
)

// compress writes a file at 3 bits per value and restores the capture from it.
func compress(ctx context.Context, capture, file, restored string) error {
	res, err := kvfile.CompressFile(ctx, capture, file, kvfile.Options{Bits: 3})
	if err != nil {
		return err
	}
	fmt.Printf("%.2f bits/value, %.1f times smaller\n", res.BitsPerValue, res.Ratio)
	_, err = kvfile.DecompressFile(ctx, file, restored, kvfile.Options{})
	return err
}

func Example() {
	dir, err := os.MkdirTemp("", "kvist")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	err = compress(context.Background(), "../../testdata/smollm2-sqlite-1k.safetensors",
		filepath.Join(dir, "cache.kvist"), filepath.Join(dir, "restored.safetensors"))
	if err != nil {
		fmt.Println(err)
	}
	// Output: 3.00 bits/value, 5.3 times smaller
}
