// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// BudgetError says that a file cannot be as small as asked for. It matches quant.ErrBudget.
type BudgetError struct {
	Name   string // of the capture
	How    string // "as an archive", "with these codings"
	Want   int64  // bytes asked for
	Least  int64  // bytes of the smallest file
	Values int64
}

// Error states the least possible.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("kvist/kvfile: %d bytes for %s %s cannot be met: the least possible is %d (%.3f bits/value): %v",
		e.Want, e.Name, e.How, e.Least, quant.BitsPerValue(e.Least, e.Values), quant.ErrBudget)
}

// Unwrap returns quant.ErrBudget.
func (e *BudgetError) Unwrap() error { return quant.ErrBudget }

// targetBytes returns the target in bytes, 0 for a target of another kind.
func (c *compressor) targetBytes() int64 {
	switch {
	case c.cfg.Bits > 0:
		return int64(c.cfg.Bits * float64(c.in.Values()) / 8)
	case c.cfg.Bytes > 0:
		return c.cfg.Bytes
	case c.cfg.Share > 0:
		return int64(c.cfg.Share * float64(2*c.in.Values()))
	}
	return 0
}

// overBudget returns the error that names the fewest bytes of a file. If these are asked for as
// bytes, the config in the header may be longer than it is now, which counts.
func (c *compressor) overBudget(how string, want, least int64) error {
	now, err := container.HeaderSize(c.header)
	if err != nil {
		return err
	}
	cfg, h := c.cfg, *c.header
	cfg.Bits, cfg.Share, cfg.Bytes = 0, 0, least
	h.Config = cfg.String()
	then, err := container.HeaderSize(&h)
	if err != nil {
		return err
	}
	return &BudgetError{Name: c.in.Name, How: how, Want: want, Least: least + max(0, then-now),
		Values: c.in.Values()}
}
