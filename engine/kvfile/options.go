// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/cpu"
	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/engine/profile"
	"github.com/kvist-project/kvist/quant"
)

// An Option says how a call works. Without any, compression takes DefaultConfig with a target of 4.3 bits a
// value as a wish, and every call runs on the CPU.
type Option func(*options) error

type options struct {
	cfg      Config
	targeted bool // a target was set
	be       backend.Backend
	weights  Weights
	progress Progress
	profiles []*profile.Profile
	salvage  bool
	force    bool
}

// DefaultBits is the target of a call that sets none: about a quarter of f16.
const DefaultBits = 4.3

// settle applies options.
func settle(opts []Option) (*options, error) {
	o := &options{cfg: DefaultConfig()}
	for _, f := range opts {
		if err := f(o); err != nil {
			return nil, err
		}
	}
	if !o.targeted && !o.cfg.Lossless {
		o.cfg.Bits, o.cfg.Soft = DefaultBits, true
	}
	return o, nil
}

// backend returns the backend of a call, the CPU's where none was given, and what closes it.
func (o *options) backend() (be backend.Backend, done func() error, err error) {
	if o.be != nil {
		return o.be, func() error { return nil }, nil
	}
	if be, err = cpu.Open(cpu.Options{}); err != nil {
		return nil, nil, err
	}
	return be, be.Close, nil
}

// WithConfig sets all settings at once; options behind it change some of them.
func WithConfig(cfg Config) Option {
	return func(o *options) error {
		o.cfg, o.targeted = cfg, true
		if cfg.Profile != nil {
			o.profiles = append(o.profiles, cfg.Profile)
		}
		return nil
	}
}

// target clears the targets, for one to be set.
func (o *options) target() {
	o.cfg.Bits, o.cfg.Bytes, o.cfg.Share, o.cfg.MaxError, o.cfg.Soft, o.targeted = 0, 0, 0, 0, false, true
}

// Bits sets the size of the file to so many bits a value of K and V, everything in it counted.
func Bits(bits float64) Option {
	return func(o *options) error {
		o.target()
		o.cfg.Bits = bits
		return nil
	}
}

// Budget sets the size of the file: "12%" of the values as float16, or bytes as "3000000" or "2MiB".
//
// Errors: quant.ErrShape for a text that is neither.
func Budget(text string) Option {
	return func(o *options) error {
		bytes, share, err := ParseBudget(text)
		if err == nil {
			o.target()
			o.cfg.Bytes, o.cfg.Share = bytes, share
		}
		return err
	}
}

// ParseBudget reads a budget: a share of the values as float16 where the text ends in "%", else bytes.
//
// Errors: quant.ErrShape.
func ParseBudget(text string) (bytes int64, share float64, err error) {
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

// MaxError takes the smallest hot file whose future-attention error is at most e. The capture must hold the
// tokens after the context.
func MaxError(e float64) Option {
	return func(o *options) error {
		o.target()
		o.cfg.MaxError = e
		return nil
	}
}

// Archive takes the archive form, which is smaller and is not attended to in place.
func Archive() Option {
	return func(o *options) error { o.cfg.Form = FormArchive; return nil }
}

// Lossless keeps every bit, in archive form.
func Lossless() Option {
	return func(o *options) error {
		o.target()
		o.cfg.Form, o.cfg.Lossless = FormArchive, true
		return nil
	}
}

// WithBackend sets what computes. The caller closes it.
func WithBackend(be backend.Backend) Option {
	return func(o *options) error { o.be = be; return nil }
}

// WithWeights sets what tokens are worth, in place of what attention says.
func WithWeights(w Weights) Option {
	return func(o *options) error { o.weights = w; return nil }
}

// WithProgress is told how far a call is.
func WithProgress(p Progress) Option {
	return func(o *options) error { o.progress = p; return nil }
}

// WithProfile gives a call profiles of the model: the last one to compress with, any of them to read archives
// that name one.
func WithProfile(profiles ...*profile.Profile) Option {
	return func(o *options) error {
		for _, p := range profiles {
			if p != nil {
				o.cfg.Profile = p
				o.profiles = append(o.profiles, p)
			}
		}
		return nil
	}
}

// WithSalvage restores what can be restored of a damaged file, and names what is lost.
func WithSalvage(on bool) Option {
	return func(o *options) error { o.salvage = on; return nil }
}

// Overwrite replaces a file that exists.
func Overwrite() Option {
	return func(o *options) error { o.force = true; return nil }
}
