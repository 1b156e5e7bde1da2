// SPDX-License-Identifier: Apache-2.0

package methods

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/kvfile"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Kvist is kvist as a method. It writes the context as a capture in memory, compresses that to a
// .kvist file and decompresses the file. Attention sees the rows, the row bias and the kept marks
// that Decompress writes.
//
// Bytes: the whole file, header, index, tables, checksums and padding included. Config.Bits and
// Config.Share count the values that a query after the context sees, as all methods are counted.
type Kvist struct {
	Config kvfile.Config
	// Weights, if set, returns the weights of the tokens of a context. Layers are numbered from 0.
	Weights func(c *Context) (kvfile.Weights, error)
	// Path is the file that Config.Profile was read from; it is part of the name.
	Path string
	// Random gives the tokens random weights with the spread of real ones, as a control. In a name it
	// is weights=random.
	Random bool
	// Label distinguishes methods with Weights. It is part of the name, after a space.
	Label string
	// Backend compresses. nil: one of package cpu, opened for the call.
	Backend backend.Backend
}

// NewKvist returns the method of a config, written as for kvfile.ParseConfig. A field profile=PATH
// names the profile of the model. Its settings apply before all other fields.
//
// Errors: quant.ErrShape, quant.ErrUnsupported; those of profile.Open.
func NewKvist(config string) (Kvist, error) {
	k := Kvist{Config: kvfile.DefaultConfig()}
	var rest []string
	for field := range strings.FieldsSeq(config) {
		path, ok := strings.CutPrefix(field, "profile=")
		if !ok {
			rest = append(rest, field)
			continue
		}
		if k.Path != "" {
			return Kvist{}, fmt.Errorf("two profiles, %s and %s: %w", k.Path, path, quant.ErrUnsupported)
		}
		p, err := profile.Open(path, profile.Limits{})
		if err != nil {
			return Kvist{}, err
		}
		if err := k.Config.Apply(p); err != nil {
			return Kvist{}, err
		}
		k.Path = path
	}
	var err error
	k.Config, err = k.Config.With(strings.Join(rest, " "))
	return k, err
}

// Name returns "kvist:2.75" or "kvist:k=lm4,v=lm4": the settings that differ from the default config,
// or from that of the profile.
func (k Kvist) Name() string {
	def := kvfile.DefaultConfig()
	// NewKvist has applied the profile before, so there is no error.
	_ = def.Apply(k.Config.Profile)
	known := map[string]bool{}
	for field := range strings.FieldsSeq(def.String()) {
		known[field] = true
	}
	var args []string
	for field := range strings.FieldsSeq(k.Config.String()) {
		if !known[field] {
			if strings.HasPrefix(field, "importance=") {
				field = strings.ReplaceAll(field, ",", ";") // "," separates the fields of a name
			}
			args = append(args, field)
		}
	}
	if len(args) > 0 {
		args[0] = strings.TrimPrefix(args[0], "bits=")
	}
	base := "kvist"
	if k.Config.Form == kvfile.FormArchive {
		base = "kvist-archive"
		args = slices.DeleteFunc(args, func(a string) bool { return a == "form=archive" })
	}
	if k.Random {
		args = append(args, randomWeightsArg)
	}
	if k.Path != "" {
		args = append(args, "profile="+k.Path)
	}
	name := withArgs(base, args)
	if k.Label != "" {
		name += " " + k.Label
	}
	return name
}

// PerLayer implements the interface PerLayer.
func (k Kvist) PerLayer() {}

// Source names this project.
func (k Kvist) Source() string { return "this project: bytes of the whole file" }

// Compress implements Method.
//
// Errors: quant.ErrShape; quant.ErrRange for values out of the range of binary16; those of
// kvfile.Compress, such as quant.ErrBudget.
func (k Kvist) Compress(ctx context.Context, c *Context) (*Cache, error) {
	s, err := c.shape(k.Name(), false)
	if err != nil {
		return nil, err
	}
	be := k.Backend
	if be == nil {
		own, err := cpu.Open(cpu.Options{})
		if err != nil {
			return nil, fmt.Errorf("kvist/methods: %s: %w", k.Name(), err)
		}
		defer own.Close() //nolint:errcheck // its buffers are all freed, nothing is left to fail
		be = own
	}
	cache, err := k.through(ctx, c, s, be)
	if err != nil {
		return nil, fmt.Errorf("kvist/methods: %s: %w", k.Name(), err)
	}
	return cache, nil
}

// through compresses the context to a file in memory and decompresses it.
func (k Kvist) through(ctx context.Context, c *Context, s shapeOf,
	be backend.Backend) (*Cache, error) {
	src, err := c.capture(s)
	if err != nil {
		return nil, err
	}
	var weights kvfile.Weights
	if k.Random {
		weights = randomWeights(len(c.Tokens))
	}
	if k.Weights != nil {
		if weights, err = k.Weights(c); err != nil {
			return nil, err
		}
	}
	var file bytes.Buffer
	var profiles []*profile.Profile
	if k.Config.Profile != nil {
		profiles = append(profiles, k.Config.Profile)
	}
	cfg := k.Config
	cfg.Memo = c.Memo
	if seen := c.seenValues(s); c.Geometry.Windowed() && cfg.Bits+cfg.Share > 0 {
		cfg.Bytes = int64(max(cfg.Bits, 16*cfg.Share) * float64(seen) / 8)
		cfg.Bits, cfg.Share = 0, 0
	}
	if _, err := kvfile.Compress(ctx, src, &file, kvfile.Options{Config: &cfg, Backend: be, Weights: weights}); err != nil {
		return nil, err
	}
	r, err := container.Open("context.kvist", bytes.NewReader(file.Bytes()), int64(file.Len()),
		container.Limits{})
	if err != nil {
		return nil, err
	}
	var restored memory
	if _, err := kvfile.Decompress(ctx, r, &restored, kvfile.Options{Profiles: profiles}); err != nil {
		return nil, err
	}
	back, err := capture.New("restored", &restored, int64(len(restored.data)), capture.Limits{})
	if err != nil {
		return nil, err
	}
	cache := &Cache{Layers: make([]CacheLayer, len(c.Layers)), Bytes: int64(file.Len())}
	return cache, inParallel(ctx, len(c.Layers), func(i int) error {
		return readLayer(back, i, s, &cache.Layers[i])
	})
}

// randomWeightsArg is the argument of a name that sets Kvist.Random.
const randomWeightsArg = "weights=random"

// randomSpread is the standard deviation of the logarithm of random weights; see DESIGN.md.
const randomSpread = 0.65

// randomWeights gives every head its own log-normal weights. They depend only on the number of tokens.
func randomWeights(tokens int) kvfile.Weights {
	return func(layer, kvHead int) ([]float32, error) {
		rng := rand.New(rand.NewPCG(uint64(layer), uint64(kvHead)))
		w := make([]float32, tokens)
		for t := range w {
			w[t] = float32(math.Exp(randomSpread * rng.NormFloat64()))
		}
		return w, nil
	}
}
