// SPDX-License-Identifier: Apache-2.0

package vectors

// Stats says what an index holds and how well its coding fits what was added.
type Stats struct {
	Rows int
	Dim  int
	// RowBytes are the bytes of a row: codes, factor and norm. SharedBytes are those of mean, basis and
	// deviations, IDBytes those of ids; both in a file.
	RowBytes    int
	SharedBytes int
	IDBytes     int
	// Bits[b] is the number of components of b bits.
	Bits [7]int
	Head int // components that are compared first; Dim, rounded up, where there is no tail
	ISA  string

	// Added counts the rows ever added, Bounded those whose factor was too large to be stored: they lie far
	// from the calibration, and are found less often than their length would make them.
	Added, Bounded int
	// Error is the mean relative squared error of the direction of the rows added, Calibrated what is expected
	// of rows like those of the sample. Drift is their ratio, 1 where nothing was added: above 1.2 or so it pays to calibrate again.
	Error, Calibrated, Drift float64
	// Spread is the mean squared distance of the rows added from the mean of the calibration, over that of the
	// sample. 0 for an oblivious index, whose rows may have any length.
	Spread float64
}
