// SPDX-License-Identifier: Apache-2.0

// Package progress calls the functions of callers that want to know how far long work is.
package progress

// Func receives the name of a stage, and how much of it is done out of how much. It may be nil. It is the type of
// kvfile.Options.Progress.
type Func func(stage string, done, total int64)

// Say calls f, unless it is nil.
func (f Func) Say(stage string, done, total int64) {
	if f != nil {
		f(stage, done, total)
	}
}
