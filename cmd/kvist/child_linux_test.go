// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
)

// runChild does what this process was started for, and ends it, unless that is to run the tests.
func runChild() {
	if os.Getenv(peakVariable) != "" {
		os.Exit(peakChild())
	}
	work := os.Getenv(attackVariable)
	if work == "" {
		return
	}
	if err := attackChild(work); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
