// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/engine/internal/parallel"
	"github.com/kvist-project/kvist/quant"
)

// Verify checks every byte of a file: checksums, structure, padding, and that no record is missing.
// VerifyRows decodes what an archive holds.
//
// Errors: *container.CorruptError.
func Verify(ctx context.Context, r *container.Reader, o Options) error {
	if err := r.Verify(func(done, total int64) { o.say("verifying", done, total) }); err != nil {
		return err
	}
	h := r.Header()
	for i := range h.Stored() {
		for s := range int(h.Segments(i)) {
			if _, ok := r.Find(i, s); !ok {
				return fmt.Errorf(
					"kvist/kvfile: record of layer index %d segment %d is not in the file: %w",
					i, s, quant.ErrCorrupt)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// VerifyRows decodes every record in archive form. It finds damage that was there before checksums
// were made. A file in hot form has nothing to decode.
//
// Errors: *profile.MissingError where the file names a profile that is not among profiles, whatever
// its records hold; all *container.CorruptError, joined.
func VerifyRows(ctx context.Context, r *container.Reader, o Options) error {
	codec, err := cold.OpenCodec(r, o.profiles())
	if err != nil {
		return err
	}
	n, workers := len(r.Records()), recordWorkers(r.Header())
	var errs []error
	var rooms cold.Rooms
	for at := 0; at < n; {
		part := make([]error, min(2*runtime.GOMAXPROCS(0), n-at))
		o.say("decoding", int64(at), int64(n))
		err := parallel.EachOf(ctx, workers, len(part), func(i int) error {
			rec, err := r.ReadRecord(at + i)
			if err == nil && rec.Archive != nil {
				room := rooms.Take()
				defer rooms.Put(room)
				err = cold.Check(codec, r.Header(), rec, room)
			}
			part[i] = err
			return nil
		})
		if err != nil {
			return err
		}
		errs = append(errs, part...)
		at += len(part)
	}
	return errors.Join(errs...)
}
