// SPDX-License-Identifier: Apache-2.0

package perf

// Cases lists all that is measured on a backend with so many threads.
func Cases(quick bool, threads int) []Case {
	all := memoryCases(threads)
	all = append(all, attendCases(quick, threads)...)
	all = append(all, signalCases(quick, threads)...)
	all = append(all, codecCases(quick, threads)...)
	all = append(all, fileCases(quick, threads)...)
	all = append(all, serveCases(quick, threads)...)
	return append(all, embedCases(quick, threads)...)
}
