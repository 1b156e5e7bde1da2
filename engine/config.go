// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/store"
	"github.com/kvist-project/kvist/quant"
)

// Layout is the order of the axes of K and V in Append. Queries and outputs are always [tokens, heads,
// head_dim].
type Layout uint8

// The layouts.
const (
	NHD Layout = iota // [tokens, kv_heads, head_dim]
	HND               // [kv_heads, tokens, head_dim], the tokens of all sequences of the step
)

// Config holds the settings of a Cache. The zero value of every field but Budget is the documented
// default.
type Config struct {
	// Budget is the most bytes that the cache may hold: rows, descriptors, kept queries, scratch
	// memory, everything. Required.
	Budget int64
	// Window is the number of recent tokens that are kept exact, a multiple of 32 from 32 to 4096.
	// Default 64.
	Window int
	// Sinks is the number of first tokens that stay exact for ever, 1 to 32. Default 4; -1 keeps none.
	Sinks int
	// Segment is the number of tokens that are sorted by weight and priced together, a multiple of 32
	// from 64 to 2048. Default 256.
	Segment int
	// KeptQueries is the number of recent queries of each layer that weigh tokens and blocks, spread
	// over the window; 1 to 64, at most Window. Default 8.
	KeptQueries int
	// IdleSteps is after how many steps without it a sequence is taken to be idle, so that pressure may take
	// from its window; see Sequence.Rest. Default 256; -1: only those that rest are idle.
	IdleSteps int
	// Exact is the share of the budget up to which rows stay f16, above 0 and up to 1. Default 0.9.
	Exact float64
	// Layout is that of K and V. Default NHD.
	Layout Layout
	// LayerWindow [layers] are the windows of sliding-window layers in tokens; 0 is a layer that
	// sees everything. nil: every layer does. A query sees its own token and LayerWindow-1 before it.
	LayerWindow []int
	// Scale multiplies q.k. Default 1/sqrt(head_dim).
	Scale float32
	// Softcap bounds scores to Softcap*tanh(score/Softcap). Default 0, no bound.
	Softcap float32
	// SensitivityK and SensitivityV [layers * kv_heads] say how much errors in a head matter beside
	// those in others, as measured in the model. nil: 1 everywhere.
	SensitivityK, SensitivityV []float32
	// Seed is that of the rotations.
	Seed uint64
	// Model and Profile are part of the keys of shared prefixes: rows of another model, or coded with
	// another profile, are never shared.
	Model, Profile string
	// Store is where sequences are parked. The cache does not close it. nil: none.
	Store store.Store
	// Archiver makes parked sequences smaller: rows that are exact, or in 8 bits, are coded by it on their way to the store
	// and come back with an error. Rows that pressure has made coarser are parked as they are, and so are those that it
	// refuses. Published prefixes and files of Save are not made smaller. nil: all rows are parked as they are.
	Archiver Archiver
	// ArchiveBits is what parked rows take, in bits a value; those of segments that are still open take 1 more, because
	// they are coded again whenever the sequence is parked. 0.25 to 8, default 2.
	ArchiveBits float64
	// Shared is where Publish puts first tokens and RecallPrefix looks for them. It may be one that several caches use,
	// where Store is the cache's own. Rows of segments that were published there are dropped when no other rows are left to
	// give: a sequence that has lost one publishes no more. The cache does not close it. nil: Store.
	Shared store.Store
	// Events is told which prefixes can be found, while the cache is locked: it must return soon and not call
	// the cache. nil: nobody is.
	Events func(Event)
	// Logger receives refusals and the start of pressure. nil: nothing is logged.
	Logger *slog.Logger

	partBytes int // exact rows of a part of an image; tests have small ones
}

const pageTokens = 32

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults(g quant.Geometry) Config {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.Window, 64)
	set(&c.Sinks, 4)
	set(&c.Segment, 256)
	set(&c.KeptQueries, 8)
	set(&c.IdleSteps, 256)
	set(&c.partBytes, 1<<20)
	if c.ArchiveBits == 0 {
		c.ArchiveBits = 2
	}
	if c.Exact == 0 {
		c.Exact = 0.9
	}
	if c.Scale == 0 {
		c.Scale = float32(1 / math.Sqrt(float64(g.HeadDim)))
	}
	return c
}

// validate reports everything that is wrong with a configuration whose defaults are filled in.
func (c *Config) validate(g quant.Geometry, be backend.Backend) error {
	var errs []error
	bad := func(ok bool, err error, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format+": %w", append(args, err)...))
		}
	}
	bad(c.Budget > 0, quant.ErrBudget, "budget %d, want the bytes that the cache may hold", c.Budget)
	bad(c.Window >= 32 && c.Window <= 4096 && c.Window%pageTokens == 0, quant.ErrShape,
		"window %d, want a multiple of %d from 32 to 4096", c.Window, pageTokens)
	bad(c.Sinks >= -1 && c.Sinks <= pageTokens, quant.ErrShape, "sinks %d, want 1 to %d, or -1 for none",
		c.Sinks, pageTokens)
	bad(c.Segment >= 64 && c.Segment <= 2048 && c.Segment%pageTokens == 0, quant.ErrShape,
		"segment %d, want a multiple of %d from 64 to 2048", c.Segment, pageTokens)
	bad(c.KeptQueries >= 1 && c.KeptQueries <= 64 && c.KeptQueries <= c.Window, quant.ErrShape,
		"kept queries %d, want 1 to 64 and at most the window %d", c.KeptQueries, c.Window)
	bad(c.IdleSteps >= -1, quant.ErrShape, "idle after %d steps, want 1 or more, or -1 for never", c.IdleSteps)
	bad(c.Exact > 0 && c.Exact <= 1, quant.ErrShape, "exact share %v, want above 0 and up to 1", c.Exact)
	bad(c.ArchiveBits >= 0.25 && c.ArchiveBits <= 8, quant.ErrShape, "archive bits %v, want 0.25 to 8", c.ArchiveBits)
	bad(c.Layout <= HND, quant.ErrShape, "layout %d, want NHD or HND", c.Layout)
	bad(c.Scale > 0 && !math.IsInf(float64(c.Scale), 0), quant.ErrShape, "scale %v, want a positive number",
		c.Scale)
	bad(c.Softcap >= 0 && !math.IsInf(float64(c.Softcap), 0), quant.ErrShape,
		"softcap %v, want 0 or a positive number", c.Softcap)
	errs = append(errs, c.validateLayers(g)...)
	for _, s := range []struct {
		side string
		dim  int
	}{{"head_dim", g.HeadDim}, {"head_dim_v", g.HeadDimV}} {
		for r := lm1; r <= f16; r++ {
			ok := be.Supports(backend.OpEncode, r.coding(), s.dim) &&
				be.Supports(backend.OpAttend, r.coding(), s.dim) && s.dim%8 == 0
			bad(ok, quant.ErrUnsupported, "%s %d in coding %s on backend %s", s.side, s.dim, r.coding(),
				be.Caps().Name)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateLayers(g quant.Geometry) (errs []error) {
	if c.LayerWindow != nil && len(c.LayerWindow) != g.Layers {
		errs = append(errs, fmt.Errorf("layer windows of %d layers, want %d: %w", len(c.LayerWindow), g.Layers,
			quant.ErrShape))
	}
	for l, w := range c.LayerWindow {
		if w < 0 {
			errs = append(errs, fmt.Errorf("window %d of layer %d, want 0 or more: %w", w, l, quant.ErrShape))
		}
	}
	for _, s := range []struct {
		name string
		x    []float32
	}{{"K", c.SensitivityK}, {"V", c.SensitivityV}} {
		if s.x != nil && len(s.x) != g.Layers*g.KVHeads {
			errs = append(errs, fmt.Errorf("sensitivity of %s for %d heads, want %d layers * %d kv_heads: %w",
				s.name, len(s.x), g.Layers, g.KVHeads, quant.ErrShape))
		}
		for i, v := range s.x {
			if !(v >= 0) || math.IsInf(float64(v), 0) {
				errs = append(errs, fmt.Errorf("sensitivity %d of %s is %v, want 0 or more: %w", i, s.name, v,
					quant.ErrShape))
				break
			}
		}
	}
	return errs
}

// layerWindow returns the window of a layer, 0 for none.
func (c *Config) layerWindow(layer int) int64 {
	if c.LayerWindow == nil {
		return 0
	}
	return int64(c.LayerWindow[layer])
}

// sensitivity returns what errors of a side matter in head layer*kv_heads + kv_head.
func (c *Config) sensitivity(side, head int) float64 {
	x := c.SensitivityK
	if side == sideV {
		x = c.SensitivityV
	}
	if x == nil {
		return 1
	}
	return float64(x[head])
}
