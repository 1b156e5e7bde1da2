// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"github.com/kvist-project/kvist/importance"
)

// maxBits is the most that a value of K or V may be given: what an f64 takes.
const maxBits = 64

// checkBits refuses a --bits that is no rate.
func checkBits(bits float64) error {
	if !(bits > 0 && bits <= maxBits) {
		return usagef("--bits %g: want bits a value, above 0 and up to %d", bits, maxBits)
	}
	return nil
}

// ranges refuses values that no config may have, by the names of the flags.
func (f *compressFlags) ranges(cmd *cobra.Command) error {
	if cmd.Flags().Changed("bits") {
		if err := checkBits(f.bits); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("max-error") && !(f.maxError > 0) {
		return usagef("--max-error %g: want a positive number", f.maxError)
	}
	for _, x := range []struct {
		name         string
		v, low, high int
	}{{"streams", f.streams, 1, 16}, {"segment", f.segment, 32, 32768}} {
		if x.v < x.low || x.v > x.high {
			return usagef("--%s %d: want %d to %d", x.name, x.v, x.low, x.high)
		}
	}
	switch {
	case f.sinks < 0:
		return usagef("--sinks %d: want 0 or more", f.sinks)
	case f.window < 0:
		return usagef("--window %d: want 0 or more", f.window)
	case !(f.unseen >= 0 && f.unseen <= 1):
		return usagef("--unseen %g: want 0 to 1", f.unseen)
	}
	if _, err := setting("levels", f.levels); err != nil {
		return usagef("--levels %q: want auto, or full, chunks, summary and dropped joined by +", f.levels)
	}
	if _, err := importance.ParseWeighting(f.importance); err != nil {
		return usagef("--importance %q: want default, none, or fields such as relevance=1,window=64",
			f.importance)
	}
	return nil
}
