// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"errors"
	"io"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
)

// CompressFile compresses the capture in the file called from to the .kvist file called to, which appears
// whole or not at all.
//
// Errors: those of Compress, capture.Open and atomicfile.Create.
func CompressFile(ctx context.Context, from, to string, o Options) (_ *Result, err error) {
	src, err := capture.Open(from, capture.Limits{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := atomicfile.Create(to, o.Overwrite)
	if err != nil {
		return nil, err
	}
	defer out.Abort() // does nothing after Commit
	res, err := Compress(ctx, src, out, o)
	if err != nil {
		return nil, err
	}
	return res, out.Commit()
}

// DecompressFile restores the .kvist file called from to the capture called to, which appears whole or not
// at all.
//
// Errors: those of Decompress and atomicfile.Create.
func DecompressFile(ctx context.Context, from, to string, o Options) (_ *Restored, err error) {
	f, r, err := openFile(from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out, err := atomicfile.Create(to, o.Overwrite)
	if err != nil {
		return nil, err
	}
	defer out.Abort() // does nothing after Commit
	res, err := Decompress(ctx, r, out, o)
	if err != nil {
		return nil, err
	}
	return res, out.Commit()
}

// openFile opens the .kvist file called path. The caller closes the file.
func openFile(path string) (io.Closer, *container.Reader, error) {
	f, st, err := atomicfile.OpenRegular(path)
	if err != nil {
		return nil, nil, err
	}
	r, err := container.Open(path, f, st.Size(), container.Limits{})
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, r, nil
}
