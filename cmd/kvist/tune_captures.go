// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/tune"
	"github.com/kvist-project/kvist/quant"
)

// captureTuner measures future-attention error on captures.
type captureTuner struct {
	bits    []float64
	obj     *tune.Captures
	hold    *tune.Captures // nil: none
	names   string
	name    string
	geo     quant.Geometry
	holdMin float64 // value of the best settings on the holdout
}

func (a *app) newCaptureTuner(ctx context.Context, args []string, f *tuneFlags, bits []float64,
	be backend.Backend) (_ *captureTuner, _ func() error, err error) {
	var files []io.Closer
	done := func() (err error) {
		for _, c := range files {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, done())
		}
	}()
	t := &captureTuner{bits: bits}
	open := func(names []string) (*tune.Captures, error) {
		var sources []*capture.Source
		for _, name := range names {
			src, in, err := a.openCapture(ctx, name)
			if err != nil {
				return nil, err
			}
			files = append(files, in)
			if err := t.same(src); err != nil {
				return nil, err
			}
			sources = append(sources, src)
		}
		return tune.NewCaptures(sources, bits, be)
	}
	if t.obj, err = open(args); err != nil {
		return nil, nil, err
	}
	var names []string
	for _, name := range args {
		names = append(names, filepath.Base(name))
	}
	t.names = strings.Join(names, " ")
	if len(f.holdout) > 0 {
		if t.hold, err = open(f.holdout); err != nil {
			return nil, nil, err
		}
	}
	return t, done, nil
}

// same holds that all captures are of one model.
func (t *captureTuner) same(src *capture.Source) error {
	if !src.Info().KV {
		return fmt.Errorf("%s holds rows, not K and V: %w", src.Info().Name, quant.ErrUnsupported)
	}
	name, geo := src.Info().Model, src.Info().Geometry
	if t.geo.Layers == 0 {
		t.name, t.geo = name, geo
		return nil
	}
	p, err := profile.New(t.name, t.geo)
	if err == nil {
		err = p.Check(name, geo)
	}
	if err != nil {
		return fmt.Errorf("%s: not of the same model as the captures before: %w", src.Info().Name, err)
	}
	return nil
}

func (t *captureTuner) objective() tune.Objective { return t.obj }

func (t *captureTuner) describe() (objective, made string) {
	return fmt.Sprintf("captures: mean log future-attention error at %v bits", t.bits), t.names
}

func (t *captureTuner) model() (string, quant.Geometry) { return t.name, t.geo }

func (t *captureTuner) sensitivity() (*profile.Sensitivity, profile.Meta) { return nil, nil }

func (t *captureTuner) holdout(ctx context.Context, start, best profile.Params) (*holdoutJSON, error) {
	if t.hold == nil {
		return nil, nil
	}
	before, err := t.hold.Evaluate(ctx, start)
	if err != nil {
		return nil, err
	}
	after, err := t.hold.Evaluate(ctx, best)
	if err != nil {
		return nil, err
	}
	t.holdMin = after
	r := math.Exp(after - before)
	return &holdoutJSON{Bits: t.bits, Texts: len(t.hold.Sources), Ratio: intervalJSON{r, r, r},
		captures: true}, nil
}

func (t *captureTuner) against(ctx context.Context, params profile.Params) (ratio, lost intervalJSON,
	err error) {
	v, err := t.hold.Evaluate(ctx, params)
	r := math.Exp(v - t.holdMin)
	return intervalJSON{r, r, r}, intervalJSON{}, err
}
