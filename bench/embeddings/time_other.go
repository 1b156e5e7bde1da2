// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package main

import "time"

// processor returns the time of the wall clock: there is no other here.
func processor() time.Duration { return time.Since(start) }
