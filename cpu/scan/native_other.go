// SPDX-License-Identifier: Apache-2.0

package scan

// native returns the kernels in assembly that this machine can run, the best first.
func native() []*kernels { return nil }
