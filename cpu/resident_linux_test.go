// SPDX-License-Identifier: Apache-2.0

package cpu

import (
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
)

var churnSteps = flag.Int("churn", 20000, "how often TestBuffers_Resident allocates or frees")

// resident returns the resident memory of the process that files do not back.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for _, line := range strings.Split(string(status), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			require.NoError(t, err)
			return kb << 10
		}
	}
	t.Skip("the kernel does not say RssAnon")
	return 0
}

// After any number of random allocations and frees, resident memory is within a tenth of what is
// allocated, also when most of it has just been freed. Sizes are spread evenly over the powers of
// two from 256 bytes to 1 MiB, and every byte is written.
func TestBuffers_Resident(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own for every byte")
	}
	b, err := Open(Options{})
	require.NoError(t, err)
	defer b.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	src := make([]byte, 1<<20)
	for i := range src {
		src[i] = 1
	}
	var all []backend.Buffer
	before := resident(t)
	check := func(what string) {
		t.Helper()
		live := b.LiveBytes()
		used := resident(t) - before
		t.Logf("%s: %.1f MB live in %d buffers, %.1f MB resident: %.3f", what, float64(live)/1e6,
			len(all), float64(used)/1e6, float64(used)/float64(live))
		require.Less(t, float64(used), 1.1*float64(live)+256<<10)
	}
	free := func() {
		i := rng.IntN(len(all))
		require.NoError(t, all[i].Free())
		all[i] = all[len(all)-1]
		all = all[:len(all)-1]
	}
	for step := range *churnSteps {
		if len(all) > 0 && (b.LiveBytes() > 216<<20 || rng.IntN(4) == 0) {
			free()
		} else {
			n := int64(256 * math.Pow(2, 12*rng.Float64()))
			buf, err := b.Alloc(n)
			require.NoError(t, err)
			require.NoError(t, buf.Upload(0, src[:n]))
			all = append(all, buf)
		}
		if step%(*churnSteps/4) == 0 && step > 0 {
			check(strconv.Itoa(step) + " steps")
		}
	}
	check("in the end")
	for b.LiveBytes() > 108<<20 {
		free()
	}
	check("half of it freed")
}
