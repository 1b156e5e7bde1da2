// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// Defaults of Options.
const (
	DefaultPrefix      = "kvist/1/"
	DefaultObjectBytes = 64 << 20
)

// Options are those of Open. The zero value is usable.
type Options struct {
	// Prefix begins every name. Stores of different prefixes share a service. Default DefaultPrefix.
	Prefix string
	// MaxBytes bounds the bytes of all objects of the prefix; 0: no limit. The store counts what was there when it
	// opened and what it put and deleted itself, and counts again before it says quant.ErrFull: what others put
	// meanwhile may exceed the limit.
	MaxBytes int64
	// ObjectBytes bounds the bytes under one key. Default DefaultObjectBytes.
	ObjectBytes int64
	// InTransit is the most objects that are sent or received at once; other calls wait. Memory in use is up to
	// twice InTransit times ObjectBytes. Default 16.
	InTransit int
	// Timeout bounds one try. Default 10 seconds.
	Timeout time.Duration
	// Tries is the most tries of a call. Default 4.
	Tries int
	// Pause is how long the store waits before the second try; it doubles each time, up to 2 seconds, and a random
	// half of it is left out. Default 50 ms.
	Pause time.Duration
	// Rest is how long calls fail at once after one has used up its tries. Default 5 seconds; below 0: not at all.
	Rest time.Duration
	// SweepPause is how long Sweep waits between objects. Default 0.
	SweepPause time.Duration
	// ReadBack makes Put read what it has put.
	ReadBack bool
	Logger   *slog.Logger     // hears of objects that are skipped. nil: nobody does
	Now      func() time.Time // nil: time.Now
}

const mostPause = 2 * time.Second

func (o Options) withDefaults() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	for _, d := range []struct {
		x   *int64
		def int64
	}{{&o.ObjectBytes, DefaultObjectBytes}, {(*int64)(&o.Timeout), int64(10 * time.Second)},
		{(*int64)(&o.Pause), int64(50 * time.Millisecond)}, {(*int64)(&o.Rest), int64(5 * time.Second)}} {
		if *d.x == 0 {
			*d.x = d.def
		}
	}
	if o.InTransit == 0 {
		o.InTransit = 16
	}
	if o.Tries == 0 {
		o.Tries = 4
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes < 0 || o.ObjectBytes < 1 || o.ObjectBytes > 1<<40 || o.InTransit < 1 || o.Tries < 1 || o.Tries > 100 ||
		o.Timeout < 0 || o.Pause < 0 || o.SweepPause < 0 {
		return o, fmt.Errorf("limit %d, objects of %d bytes, %d in transit, %d tries, timeout %v, pause %v: %w", o.MaxBytes,
			o.ObjectBytes, o.InTransit, o.Tries, o.Timeout, o.Pause, quant.ErrShape)
	}
	return o, nil
}
