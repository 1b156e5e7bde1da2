// SPDX-License-Identifier: Apache-2.0

package trellis

// halves[b-1] are the positive levels of width b in 1/4096 of a standard deviation; the others mirror
// them. They are centroids of the cells that Encode makes of a long Gaussian row. TestLevels_Train trains
// them again.
var halves = [MaxWidth][]int16{
	{1409, 4927},
	{785, 2459, 4364, 7635},
	{444, 1268, 2194, 3131, 4228, 5523, 7344, 10207},
	{
		247, 704, 1203, 1676, 2189, 2693, 3236, 3788, 4389, 5027, 5743, 6564, 7552, 8771, 10376, 12812,
	},
	{
		129, 374, 635, 880, 1143, 1391, 1657, 1909, 2182, 2443, 2720, 2991, 3280, 3564, 3863, 4164, 4479,
		4800, 5139, 5491, 5864, 6259, 6684, 7142, 7650, 8214, 8848, 9574, 10425, 11451, 12801, 14853,
	},
	{
		67, 189, 322, 445, 578, 703, 835, 960, 1092, 1219, 1351, 1480, 1614, 1744, 1879, 2008, 2145, 2277,
		2417, 2551, 2693, 2830, 2974, 3114, 3259, 3402, 3549, 3696, 3849, 4000, 4157, 4313, 4474, 4635,
		4802, 4971, 5142, 5317, 5497, 5680, 5870, 6063, 6262, 6467, 6679, 6897, 7128, 7366, 7618, 7881,
		8161, 8455, 8771, 9107, 9471, 9865, 10301, 10780, 11322, 11943, 12668, 13560, 14754, 16621,
	},
}

// distortions[b] is the mean squared error of a Gaussian of unit variance at width b.
var distortions = [MaxWidth + 1]float64{1, 0.30236, 0.08529, 0.02327, 0.00620, 0.00162, 0.00041}

// tables and scans hold the levels of each width as Levels and ScanLevels return them.
var tables, scans, units = makeTables()

func makeTables() (t [MaxWidth + 1][]float32, s [MaxWidth + 1][]uint8, unit [MaxWidth + 1]float32) {
	for b := 1; b <= MaxWidth; b++ {
		half := halves[b-1]
		n := len(half)
		t[b], s[b] = make([]float32, 2*n), make([]uint8, 2*n)
		top := int(half[n-1])
		unit[b] = float32(top) / (4096 * ScanTop)
		for k, l := range half {
			t[b][n+k], t[b][n-1-k] = float32(l)/4096, -float32(l)/4096
			c := uint8((2*int(l)*ScanTop + top) / (2 * top))
			s[b][n+k], s[b][n-1-k] = ScanZero+c, ScanZero-c
		}
	}
	return t, s, unit
}

// Levels returns the levels of a width from 1 to MaxWidth, ascending, in standard deviations. Level l is
// in subset l%4, where it is member l/4. Read only.
func Levels(width int) []float32 { return tables[width] }

// Distortion returns the mean squared error of a long Gaussian row of unit variance at a width from 0 to
// MaxWidth.
func Distortion(width int) float64 { return distortions[width] }

// Levels of 7 bits, with which a scan finds the rows to look at more closely.
const (
	// ScanZero is the level of 7 bits that stands for zero.
	ScanZero = 64
	// ScanTop is the largest distance from ScanZero. Two products of a level and an int8 from -127 to 127
	// then fit into an int16.
	ScanTop = 63
)

// ScanLevels returns the levels of a width rounded to 7 bits, and the unit that they are in: Levels[l] is
// nearly unit * (ScanLevels[l] - ScanZero). Read only.
func ScanLevels(width int) (levels []uint8, unit float32) { return scans[width], units[width] }
