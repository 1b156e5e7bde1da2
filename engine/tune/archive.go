// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/quant"
)

// ArchiveSides returns the bytes that K and V of each stored layer take in a file in archive form. What
// they share is not counted.
//
// Errors: quant.ErrShape for a file of rows or one in hot form; *container.CorruptError, *archive.CorruptError.
func ArchiveSides(r *container.Reader) ([][2]int64, error) {
	h := r.Header()
	if h.Kind != container.KindCache {
		return nil, fmt.Errorf("kvist/tune: the file holds rows, want K and V: %w", quant.ErrShape)
	}
	sides := make([][2]int64, h.Stored())
	for i, info := range r.Records() {
		rec, err := r.ReadRecord(i)
		if err != nil {
			return nil, err
		}
		if rec.Archive == nil {
			return nil, fmt.Errorf("kvist/tune: the file is in hot form, want an archive: %w", quant.ErrShape)
		}
		lanes, err := archive.LaneSizes(rec.Archive, 2*h.KVHeads())
		if err != nil {
			return nil, err
		}
		for j, n := range lanes {
			sides[info.Layer][j%2] += n
		}
	}
	return sides, nil
}
