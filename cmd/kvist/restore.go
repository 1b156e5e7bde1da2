// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
)

// kvistMagic is how a .kvist file starts.
const kvistMagic = "\x93KVIST"

// openSource opens what compress reads: a capture, or a .kvist file, which it restores to a
// temporary one first, or a state of llama.cpp. weights is what an archive says of its tokens, or nil.
func (a *app) openSource(ctx context.Context, name string, f *compressFlags, p *profile.Profile) (src *capture.Source,
	in *input, weights kvfile.Weights, err error) {
	in, err = a.openInput(ctx, name)
	if err != nil {
		return nil, nil, nil, err
	}
	head := make([]byte, len(kvistMagic))
	if _, e := in.ReadAt(head, 0); e == nil && string(head) == kvistMagic {
		restored, w, err := a.restore(ctx, in, p)
		if err = errors.Join(err, in.Close()); err != nil {
			return nil, nil, nil, err
		}
		in, weights = restored, w
	} else if isState(in) {
		made, err := a.openState(ctx, in, f, p)
		if err = errors.Join(err, in.Close()); err != nil {
			return nil, nil, nil, err
		}
		in = made
	} else if f.state.model != "" {
		return nil, nil, nil, errors.Join(usagef("--model is for states of llama.cpp, %s is none", in.name), in.Close())
	}
	src, err = capture.New(in.name, in, in.size, capture.Limits{})
	if err != nil {
		return nil, nil, nil, errors.Join(err, in.Close())
	}
	in.owns(src)
	return src, in, weights, nil
}

// restore decompresses a .kvist file to a temporary one.
func (a *app) restore(ctx context.Context, in *input, p *profile.Profile) (out *input,
	weights kvfile.Weights, err error) {
	r, err := openKvist(in)
	if err != nil {
		return nil, nil, err
	}
	var profiles []*profile.Profile
	if p != nil {
		profiles = append(profiles, p)
	}
	if weights, err = kvfile.ArchiveWeights(ctx, r, profiles...); err != nil {
		return nil, nil, err
	}
	defer liftMemory()
	s, err := atomicfile.NewScratch()
	if err != nil {
		return nil, nil, err
	}
	say, clear := a.progress()
	_, err = kvfile.Decompress(ctx, r, s, kvfile.Options{Progress: say, Profiles: profiles})
	clear()
	var size int64
	if err == nil {
		size, err = s.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return &input{ReaderAt: s, Closer: s, name: in.name, size: size}, weights, nil
}
