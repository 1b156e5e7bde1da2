// SPDX-License-Identifier: Apache-2.0

package perf

import "time"

// took is how long something took: by the clock, and in processor time of all threads of this process.
type took struct{ wall, cpu time.Duration }

var origin = time.Now()

func now() took { return took{time.Since(origin), cpuTime()} }

func (t took) since() took {
	u := now()
	return took{u.wall - t.wall, u.cpu - t.cpu}
}

// busy is the processor time, or the clock's where the system does not tell.
func (t took) busy() time.Duration {
	if t.cpu > 0 {
		return t.cpu
	}
	return t.wall
}
