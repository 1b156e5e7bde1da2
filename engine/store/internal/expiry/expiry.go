// SPDX-License-Identifier: Apache-2.0

// Package expiry has the times after which records of a store go, as stores write them: nanoseconds since 1970,
// or 0 for never.
package expiry

import "time"

// Nanos returns a time as it is stored.
func Nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(t.UnixNano(), 1)
}

// Time is the inverse of Nanos.
func Time(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Later returns the later of two expiries.
func Later(a, b int64) int64 {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}
