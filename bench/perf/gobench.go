// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"io"
	"strings"
)

// WriteGo writes a record in the format of Go's benchmarks, which benchstat reads. A line is a unit of work.
func (r *Record) WriteGo(w io.Writer) error {
	_, err := fmt.Fprintf(w, "goos: %s\ngoarch: %s\npkg: github.com/kvist-project/kvist/bench/perf\ncpu: %s\n", r.Machine.OS,
		r.Machine.Arch, r.Machine.Processor)
	for i := range r.Results {
		if err != nil {
			break
		}
		x := &r.Results[i]
		name := strings.ToUpper(x.Name[:1]) + x.Name[1:]
		_, err = fmt.Fprintf(w, "Benchmark%s/backend=%s-%s-%d\t%d\t%g ns/op\t%g cpu-ns/op", strings.ReplaceAll(name, " ", "_"), r.Backend.Name,
			r.Backend.ISA, x.Threads, x.Runs, x.NS.Median, x.CPUNS.Median)
		if err == nil && x.DeviceNS != nil {
			_, err = fmt.Fprintf(w, "\t%g device-ns/op", x.DeviceNS.Median)
		}
		if err == nil && x.Bytes > 0 {
			_, err = fmt.Fprintf(w, "\t%g stored-GB/s\t%g bits/value", digits4(x.GBps()), digits4(x.BitsPerValue()))
		}
		if err == nil {
			_, err = fmt.Fprintln(w)
		}
	}
	return err
}
