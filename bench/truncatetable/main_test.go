// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var cell = regexp.MustCompile(`^(refused: )?[0-9.e-]+ %, ([0-9.]+) x \(([0-9.]+) x\)$`)

// The table holds what truncate promises: files of four streams are cut down to 60 % of their size with at
// most twice the error of coding afresh, and what is refused is beyond that.
func TestResults_HoldWhatIsPromised(t *testing.T) {
	b, err := os.ReadFile("../../" + resultFile)
	require.NoError(t, err)
	captures, rows := 0, 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "## ") {
			captures++
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		bits, err := strconv.ParseFloat(strings.TrimSpace(cells[0]), 64)
		if err != nil || len(cells) != 2+len(wholes) {
			continue
		}
		rows++
		for i, whole := range wholes {
			text := strings.TrimSpace(cells[2+i])
			if bits > whole {
				require.Empty(t, text)
				continue
			}
			m := cell.FindStringSubmatch(text)
			require.NotNil(t, m, text)
			times, err := strconv.ParseFloat(m[2], 64)
			require.NoError(t, err)
			if bits >= 0.6*whole {
				require.Empty(t, m[1], "%g bits from %g", bits, whole)
			}
			if m[1] == "" {
				require.LessOrEqual(t, times, 2.0, "%g bits from %g", bits, whole)
			}
		}
	}
	require.Equal(t, 2, captures)
	require.Equal(t, captures*len(sizes), rows)
}
