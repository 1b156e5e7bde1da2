// SPDX-License-Identifier: Apache-2.0

package layout

import "testing"

// Planes of 16 rows each, or of rows of 128 values each, are whole 16-byte words.
func TestPlaneBytes_WholeWords(t *testing.T) {
	for dim := 8; dim <= 1024; dim += 8 {
		for rows := 1; rows <= 256; rows++ {
			n := PlaneBytes(rows, dim)
			if n < rows*dim/8 || n%8 != 0 {
				t.Fatalf("%d rows of %d values: %d bytes", rows, dim, n)
			}
			if (rows%16 == 0 || dim%128 == 0) && (n%16 != 0 || n != rows*dim/8) {
				t.Fatalf("%d rows of %d values: %d bytes, want whole words without padding", rows, dim, n)
			}
		}
	}
}
