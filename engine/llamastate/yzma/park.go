// SPDX-License-Identifier: Apache-2.0

// Package yzma parks conversations of llama.cpp, as Go servers run it through github.com/hybridgroup/yzma, in a
// fraction of their bytes.
//
// Park takes the K and V of a sequence out of a context and compresses them. Resume puts them back, into this
// context or another one of the same model and settings. The tokens of a conversation are the server's own.
//
// A sequence holds no queries: a profile with queries (kvist calibrate) says what they are like.
package yzma

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/quant"
)

// Park returns a sequence of a context as a .kvist file, in archive form. It leaves the sequence in the context:
// llama.MemorySeqRm frees it.
//
// Errors: quant.ErrUnavailable for a sequence without cells; those of llamastate and of kvfile.Compress.
func Park(ctx context.Context, from llama.Context, seq llama.SeqId, f llamastate.Facts, o kvfile.Options) ([]byte, error) {
	raw := make([]byte, llama.StateSeqGetSize(from, seq))
	if n := llama.StateSeqGetData(from, raw, seq); n == 0 || n != uint64(len(raw)) {
		return nil, fmt.Errorf("kvist/yzma: park sequence %d: llama.cpp gave %d of %d bytes: %w", seq, n, len(raw),
			quant.ErrUnavailable)
	}
	s, err := llamastate.Open(fmt.Sprintf("sequence %d", seq), bytes.NewReader(raw), int64(len(raw)), llamastate.Limits{})
	if err != nil {
		return nil, err
	}
	src, err := through(func(w io.WriterAt) error { return s.Capture(ctx, w, f, nil) })
	if err != nil {
		return nil, err
	}
	defer src.Close()
	o.Archive = true
	var file bytes.Buffer
	if _, err := kvfile.Compress(ctx, src.Source, &file, o); err != nil {
		return nil, err
	}
	return file.Bytes(), nil
}

// Resume puts a parked sequence into a context, as sequence seq, in the place of what is there. o has the profiles
// that Park was given.
//
// Errors: those of kvfile.Decompress and llamastate.Restore; quant.ErrUnavailable where llama.cpp does not take it,
// because the context is of another model, has other types or no room.
func Resume(ctx context.Context, to llama.Context, seq llama.SeqId, file []byte, o kvfile.Options) error {
	r, err := container.Open("parked sequence", bytes.NewReader(file), int64(len(file)), container.Limits{})
	if err != nil {
		return err
	}
	src, err := through(func(w io.WriterAt) error {
		_, err := kvfile.Decompress(ctx, r, w, o)
		return err
	})
	if err != nil {
		return err
	}
	defer src.Close()
	var raw bytes.Buffer
	if _, err := llamastate.Restore(ctx, src.Source, &raw); err != nil {
		return err
	}
	if n := llama.StateSeqSetData(to, raw.Bytes(), seq); n != uint64(raw.Len()) {
		return fmt.Errorf("kvist/yzma: resume sequence %d: llama.cpp took %d of %d bytes: %w", seq, n, raw.Len(),
			quant.ErrUnavailable)
	}
	return nil
}

// source is a capture in a temporary file.
type source struct {
	*capture.Source
	file io.Closer
}

// Close closes both.
func (s *source) Close() error { return errors.Join(s.Source.Close(), s.file.Close()) }

func through(write func(w io.WriterAt) error) (*source, error) {
	f, err := atomicfile.NewScratch()
	if err != nil {
		return nil, err
	}
	if err := write(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	src, err := capture.New("sequence", f, size, capture.Limits{})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &source{src, f}, nil
}
