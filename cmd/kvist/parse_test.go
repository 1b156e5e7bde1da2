// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/quant"
)

func TestParseBudget(t *testing.T) {
	for _, c := range []struct {
		text  string
		bytes int64
		share float64
	}{
		{"1500000", 1500000, 0}, {"1.5M", 1500000, 0}, {"1.5MB", 1500000, 0}, {"2GiB", 2 << 30, 0},
		{"2Gi", 2 << 30, 0},
		{"3k", 3000, 0}, {"3K", 3000, 0}, {"3KiB", 3072, 0}, {"512B", 512, 0}, {"1e6", 1000000, 0},
		{"1T", 1e12, 0},
		{"10%", 0, 0.1}, {"12.5%", 0, 0.125}, {"200%", 0, 2}, {" 7 MB", 7000000, 0},
	} {
		bytes, share, err := parseBudget(c.text)
		require.NoError(t, err, c.text)
		require.Equal(t, c.bytes, bytes, c.text)
		require.InDelta(t, c.share, share, 1e-12, c.text)
	}
	for _, text := range []string{"", "%", "M", "-1", "-5%", "0", "0%", "0.2", "201%", "NaN", "Inf",
		"1Q", "ten", "1e30",
		"10%%", "1.5MM", "0x1p90"} {
		_, _, err := parseBudget(text)
		require.Error(t, err, "%q", text)
	}
}

func TestParseCodings(t *testing.T) {
	lm := func(f quant.Format) []quant.Coding { return []quant.Coding{{Format: f}} }
	m, err := parseCodings("lm4")
	require.NoError(t, err)
	require.Equal(t, codingMenus{lm(quant.LM4), lm(quant.LM4), lm(quant.LM4)}, m)
	m, err = parseCodings("k=lm4,v=lm3")
	require.NoError(t, err)
	require.Equal(t, codingMenus{k: lm(quant.LM4), v: lm(quant.LM3)}, m)
	m, err = parseCodings("v=lm2|lm3+len+s8|lm4")
	require.NoError(t, err)
	require.Nil(t, m.k)
	require.Len(t, m.v, 3)
	require.Equal(t, quant.Coding{Format: quant.LM3, Rule: quant.LengthKeeping,
		Scale: quant.ScaleLog8}, m.v[1])
	m, err = parseCodings("lm2|lm3")
	require.NoError(t, err)
	require.Len(t, m.rows, 2)
	for _, text := range []string{"", "lm5", "k=", "k=lm4,k=lm3", "q=lm4", "k=lm4,lm3", "k=lm4|",
		"lm4,v=lm3", "kivi2"} {
		_, err := parseCodings(text)
		require.Error(t, err, "%q", text)
	}
}

func TestText(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 7: "7", 999: "999", 1000: "1,000",
		1234567: "1,234,567", -1000: "-1,000",
		-12: "-12"} {
		require.Equal(t, want, count(n))
	}
	require.Equal(t, "0.071 %", percent(0.00071))
	require.Equal(t, "1.0e-05 %", percent(1e-7))
	require.Equal(t, "0 %", percent(0))
	require.Equal(t, "54.2 %", share(542, 1000))
	require.Equal(t, "-", share(1, 0))
}
