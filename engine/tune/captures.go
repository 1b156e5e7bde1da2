// SPDX-License-Identifier: Apache-2.0

package tune

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/engine/report"
	"github.com/kvist-project/kvist/quant"
)

// Captures is an objective that needs no model: the mean, over captures and bit rates, of the
// natural logarithm of the future-attention error (engine/quality) of the file that the settings
// make.
//
// It cannot see what is asked later and was never attended to, so it favours settings that starve
// such tokens. If the model is available, measure in the model. NewCaptures makes a Captures.
type Captures struct {
	Sources []*capture.Source // each with k_next, v_next, q_next of every layer
	Bits    []float64         // bit rates: bits per value of the whole file
	Backend backend.Backend
	// Profile, if set, provides sensitivities. Its settings are not used.
	Profile *profile.Profile

	identity string
	memos    []*kvfile.Memo // of each source
}

// NewCaptures returns the objective over these captures. It reads them once to hash them.
//
// Errors: quant.ErrShape without captures or rates, quant.ErrUnsupported for a capture without
// later queries; those of the captures.
func NewCaptures(sources []*capture.Source, bits []float64, be backend.Backend) (*Captures, error) {
	if len(sources) == 0 || len(bits) == 0 {
		return nil, shapef("captures: %d captures, %d rates, want one of each or more", len(sources),
			len(bits))
	}
	c := &Captures{Sources: sources, Bits: bits, Backend: be, identity: fmt.Sprint("captures ", bits)}
	for _, b := range bits {
		if !(b > 0 && b <= 64) {
			return nil, shapef("captures: %v bits a value, want above 0 and up to 64", b)
		}
	}
	for _, s := range sources {
		for _, l := range s.Info().Layers {
			if _, ok := s.KV(l, capture.QNext); !ok { // it implies the other two
				return nil, fmt.Errorf("kvist/tune: capture %s: layer %d has no k_next, v_next, q_next to "+
					"measure on: %w", s.Info().Name, l, quant.ErrUnsupported)
			}
		}
		if len(s.Info().Layers) == 0 {
			return nil, fmt.Errorf("kvist/tune: capture %s holds no layers of K and V: %w", s.Info().Name,
				quant.ErrUnsupported)
		}
		c.memos = append(c.memos, &kvfile.Memo{})
		sum, err := hashTensors(s)
		if err != nil {
			return nil, err
		}
		c.identity += " " + hex.EncodeToString(sum[:8])
	}
	return c, nil
}

// hashTensors hashes the names and bytes of all tensors of a capture.
func hashTensors(s *capture.Source) (sum [32]byte, err error) {
	h := sha256.New()
	for _, t := range s.Tensors() {
		fmt.Fprintf(h, "%s %s %v\n", t.Name, t.DTypeName, t.Shape)
		for off := int64(0); off < t.Bytes; off += 1 << 20 {
			b := make([]byte, min(1<<20, t.Bytes-off))
			if err := s.ReadAt(t.Name, off, b); err != nil {
				return sum, err
			}
			_, _ = h.Write(b) // never fails
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

// Identity implements Objective.
func (c *Captures) Identity() string {
	if c.Profile != nil {
		return c.identity + " profile " + c.Profile.Digest(profile.SectionSensitivity).Full()
	}
	return c.identity
}

// Evaluate implements Objective. It returns +Inf if the budget cannot be met.
//
// Errors: those of kvfile.Compress and kvfile.Compare.
func (c *Captures) Evaluate(ctx context.Context, p profile.Params) (float64, error) {
	var sum float64
	for i, s := range c.Sources {
		for _, bits := range c.Bits {
			e, err := c.one(ctx, s, c.memos[i], bits, p)
			if errors.Is(err, quant.ErrBudget) {
				return math.Inf(1), nil
			}
			if err != nil {
				return 0, err
			}
			sum += math.Log(max(e, 1e-12))
		}
	}
	return sum / float64(len(c.Sources)*len(c.Bits)), nil
}

func (c *Captures) one(ctx context.Context, s *capture.Source, memo *kvfile.Memo, bits float64,
	p profile.Params) (float64, error) {
	cfg, err := kvfile.DefaultConfig().WithParams(p)
	if err != nil {
		return 0, err
	}
	cfg.Bits, cfg.Profile, cfg.Memo = bits, c.Profile, memo
	var file bytes.Buffer
	if _, err := kvfile.Compress(ctx, s, &file, kvfile.Options{Config: &cfg, Backend: c.Backend}); err != nil {
		return 0, err
	}
	r, err := container.Open(s.Info().Name, bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	if err != nil {
		return 0, err
	}
	cmp, err := report.Compare(ctx, r, s, report.Options{Backend: c.Backend})
	if err != nil {
		return 0, err
	}
	return cmp.FutureError, nil
}
