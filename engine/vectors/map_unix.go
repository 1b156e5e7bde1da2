// SPDX-License-Identifier: Apache-2.0

//go:build unix

package vectors

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kvist-project/kvist/quant"
)

// mapFile maps a file for reading.
func mapFile(f *os.File, size int64) (b []byte, release func() error, err error) {
	if size <= 0 || size > math.MaxInt {
		return nil, nil, fmt.Errorf("kvist/vectors: mapping %d bytes: %w", size, quant.ErrUnsupported)
	}
	b, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return b, func() error { return unix.Munmap(b) }, nil
}
