// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

func TestExitCode(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("kvist/kvfile: doing: %w", err) }
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"nil", nil, 0},
		{"usage", usagef("no"), 2},
		{"usage of a category", &usageError{err: quant.ErrUnsupported}, 2},
		{"missing file", fs.ErrNotExist, 1},
		{"corrupt", wrap(quant.ErrCorrupt), 3},
		{"version", wrap(quant.ErrVersion), 3},
		{"container damage", wrap(&container.CorruptError{Err: quant.ErrCorrupt}), 3},
		{"refused", wrap(&container.RefusedError{Err: quant.ErrTooLarge}), 3},
		{"capture damage", wrap(&capture.FormatError{Err: quant.ErrCorrupt}), 3},
		{"capture not read here", wrap(&capture.FormatError{Err: quant.ErrUnsupported}), 1},
		{"capture beyond a limit", wrap(&capture.FormatError{Err: quant.ErrTooLarge}), 1},
		{"capture of another version", wrap(&capture.FormatError{Err: quant.ErrVersion}), 1},
		{"capture not read, another damaged", errors.Join(
			&capture.FormatError{Err: quant.ErrUnsupported}, quant.ErrCorrupt), 3},
		{"capture that cannot be read", wrap(&capture.FormatError{Err: fs.ErrPermission}), 1},
		{"joined", errors.Join(fs.ErrClosed, quant.ErrCorrupt), 3},
		{"lost", errLost, 3},
		{"budget", wrap(quant.ErrBudget), 1},
		{"shape", wrap(quant.ErrShape), 1},
		{"unsupported", wrap(quant.ErrUnsupported), 1},
		{"unavailable", wrap(quant.ErrUnavailable), 1},
		{"interrupted", wrap(context.Canceled), 130},
		{"interrupted while damage was looked for", errors.Join(quant.ErrCorrupt, context.Canceled), 130},
	} {
		require.Equal(t, c.want, exitCode(c.err), c.name)
	}
}

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("kvist/container: reading a: x"), errors.New("kvist/quant: y\nz"))
	require.Equal(t, "reading a: x; y; z", oneLine(err))
	require.Equal(t, "interrupted", oneLine(fmt.Errorf("encode: %w", context.Canceled)))
	n := 0
	eachError(errors.Join(err, errors.New("c")), func(error) { n++ })
	require.Equal(t, 3, n)
}
