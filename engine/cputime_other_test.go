// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package engine

import "time"

// cpuTime is unknown on this system.
func cpuTime() time.Duration { return 0 }
