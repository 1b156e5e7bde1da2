// SPDX-License-Identifier: Apache-2.0

//go:build race

package cpu

// raceEnabled reports whether the race detector is on, which makes sync.Pool drop items at random.
const raceEnabled = true
