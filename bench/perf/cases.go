// SPDX-License-Identifier: Apache-2.0

package perf

// Cases lists all that is measured on a backend with so many threads. device says that its memory is not the host's.
func Cases(quick bool, threads int, device bool) []Case {
	all := memoryCases(threads)
	if device {
		all = transferCases()
	}
	all = append(all, attendCases(quick, threads)...)
	all = append(all, signalCases(quick, threads)...)
	all = append(all, codecCases(quick, threads)...)
	all = append(all, fileCases(quick, threads)...)
	all = append(all, serveCases(quick, threads)...)
	return append(all, embedCases(quick, threads)...)
}
