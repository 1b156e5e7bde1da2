// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/internal/progress"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// Options say how a call works. The zero value compresses to 4.3 bits a value, or to the smallest file where
// that is larger, and computes on the CPU. A call ignores the fields that it has no use for.
type Options struct {
	// Config has all settings of compression. nil: DefaultConfig.
	Config *Config
	// At most one of the following targets is set. It replaces that of Config.
	Bits     float64 // bits a value of K and V, everything in the file counted
	Budget   string  // "12%" of the values as float16, or bytes as "3000000", "512KiB" or "2MiB"
	MaxError float64 // the smallest hot file with at most this future-attention error
	Lossless bool    // every bit, in archive form
	// Archive takes the archive form, which is smaller and is not attended to in place.
	Archive bool
	// Profiles are of the model. Compression uses the last one; a file in archive form that names one is read
	// with any of them.
	Profiles []*profile.Profile
	// Weights says what tokens are worth, in place of what attention says.
	Weights Weights
	// Backend computes. The caller closes it. nil: the CPU.
	Backend backend.Backend
	// Progress, if set, is told what is done and how much of it. Calls come from any goroutine, one at a time.
	Progress func(stage string, done, total int64)
	// Overwrite lets CompressFile and DecompressFile replace a file that exists.
	Overwrite bool
	// Salvage lets Decompress restore what can be restored of a damaged file, and name what is lost.
	Salvage bool
	// Force lets Truncate write a file whatever it loses.
	Force bool
}

// defaultBits is the target of a call that sets none: about a quarter of f16.
const defaultBits = 4.3

// config returns the settings of a compression.
//
// Errors: quant.ErrShape for two targets, or a budget that cannot be read.
func (o *Options) config() (Config, error) {
	cfg := DefaultConfig()
	if o.Config != nil {
		cfg = *o.Config
	}
	targets := 0
	for _, set := range []bool{o.Bits != 0, o.Budget != "", o.MaxError != 0, o.Lossless} {
		if set {
			targets++
		}
	}
	if targets > 1 {
		return cfg, fmt.Errorf("kvist/kvfile: options: %d targets among Bits %g, Budget %q, MaxError %g and Lossless %t, "+
			"want one: %w", targets, o.Bits, o.Budget, o.MaxError, o.Lossless, quant.ErrShape)
	}
	if targets == 1 {
		cfg.Bits, cfg.Bytes, cfg.Share, cfg.MaxError, cfg.Soft = o.Bits, 0, 0, o.MaxError, false
		cfg.Lossless = o.Lossless
	}
	if o.Budget != "" {
		var err error
		if cfg.Bytes, cfg.Share, err = parseBudget(o.Budget); err != nil {
			return cfg, err
		}
	}
	if o.Archive || o.Lossless {
		cfg.Form = FormArchive
	}
	if targets == 0 && o.Config == nil {
		cfg.Bits, cfg.Soft = defaultBits, true
	}
	if p := o.profiles(); len(p) > 0 {
		cfg.Profile = p[len(p)-1]
	}
	return cfg, nil
}

// profiles returns the profiles that were given, that of Config first.
func (o *Options) profiles() (all []*profile.Profile) {
	if o.Config != nil && o.Config.Profile != nil {
		all = append(all, o.Config.Profile)
	}
	for _, p := range o.Profiles {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// say tells the caller of progress.
func (o *Options) say(stage string, done, total int64) {
	progress.Func(o.Progress).Say(stage, done, total)
}

// backend returns the backend of a call, the CPU's where none was given, and what closes it.
func (o *Options) backend() (be backend.Backend, done func() error, err error) {
	if o.Backend != nil {
		return o.Backend, func() error { return nil }, nil
	}
	if be, err = cpu.Open(cpu.Options{}); err != nil {
		return nil, nil, err
	}
	return be, be.Close, nil
}

// parseBudget reads a budget: a share of the values as float16 where the text ends in "%", else bytes.
//
// Errors: quant.ErrShape.
func parseBudget(text string) (bytes int64, share float64, err error) {
	bad := fmt.Errorf("kvist/kvfile: budget %q: want a share as 12%%, or bytes as 3000000, 512KiB, 2MiB or 1GiB: %w", text,
		quant.ErrShape)
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		x, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(x > 0) {
			return 0, 0, bad
		}
		return 0, x / 100, nil
	}
	shift := 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			text, shift = number, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n > 1<<(62-shift) {
		return 0, 0, bad
	}
	return n << shift, 0, nil
}
