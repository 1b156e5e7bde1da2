// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/quant"
)

// The exit statuses.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitDamaged = 3
	// What shells say of processes that signals ended: 128 and the number of the signal.
	exitInterrupted = 130 // SIGINT
	exitTerminated  = 143 // SIGTERM, and SIGHUP, which is handled as that
)

// usageError is a command line that cannot be.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format,
		args...)}
}

// errLost ends a salvage that lost something: the output was written, and the exit status says that it is not
// complete. errDamage ends a verb that has listed the damage itself.
var (
	errLost   = fmt.Errorf("parts of the input were lost: %w", quant.ErrCorrupt)
	errDamage = fmt.Errorf("the file is damaged: %w", quant.ErrCorrupt)
)

// exitCode maps an error to the exit status.
//
// 3 stands for an input that is damaged (quant.ErrCorrupt), and for a .kvist file or profile of
// another version or valid but not read by this build, a container.RefusedError. A capture that is
// valid but not read, or beyond a limit of its reader, is 1: nothing of it is damaged. So is a file
// that is missing or cannot be read for reasons of the system. Work that was cancelled is 130; run
// knows the signal, and whether it is another number.
func exitCode(err error) int {
	var usage *usageError
	var refused *container.RefusedError
	var format *capture.FormatError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, quant.ErrCorrupt), errors.As(err, &refused):
		return exitDamaged
	case errors.Is(err, quant.ErrVersion) && !errors.As(err, &format):
		return exitDamaged
	}
	return exitFailed
}

var packagePrefix = regexp.MustCompile(`kvist/[a-z/]+: `)

// oneLine is the text of an error on one line, without the names of our packages.
func oneLine(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	s := packagePrefix.ReplaceAllString(err.Error(), "")
	var usage *usageError
	if errors.As(err, &usage) { // its category is that of all wrong usage
		s = strings.NewReplacer(": "+quant.ErrShape.Error(), "", ": "+quant.ErrUnsupported.Error(),
			"").Replace(s)
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }),
		"; ")
}

// eachError calls f for the errors that were joined into err, or for err itself.
func eachError(err error, f func(error)) {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			eachError(e, f)
		}
		return
	}
	f(err)
}
