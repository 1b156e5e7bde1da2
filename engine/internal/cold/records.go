// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/archive"
	"github.com/kvist-project/kvist/engine/profile"
)

// Records reads the records of a file as blocks, those in archive form too.
type Records struct {
	r     *container.Reader
	codec *archive.Codec
}

// OpenRecords returns the records of a file. A file in archive form that names a profile needs it.
//
// Errors: *profile.MissingError; *container.CorruptError.
func OpenRecords(r *container.Reader, profiles []*profile.Profile) (*Records, error) {
	codec, err := OpenCodec(r, profiles)
	if err != nil {
		return nil, err
	}
	return &Records{r: r, codec: codec}, nil
}

// Record reads record i of the file. Rows in archive form are decoded, and stand in blocks of their own
// type.
//
// Errors: *container.CorruptError.
func (r *Records) Record(i int) (*container.Record, error) {
	rec, err := r.r.ReadRecord(i)
	if err != nil {
		return nil, err
	}
	return Expand(r.codec, r.r.Header(), rec)
}
