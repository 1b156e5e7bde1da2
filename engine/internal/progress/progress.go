// SPDX-License-Identifier: Apache-2.0

// Package progress calls the functions of callers that want to know how far long work is.
package progress

// Func is told what is done and how much of it, as kvfile.Options.Progress. It may be nil.
type Func func(stage string, done, total int64)

// Say calls f, unless it is nil.
func (f Func) Say(stage string, done, total int64) {
	if f != nil {
		f(stage, done, total)
	}
}
