// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// The pages show what the results hold: every number comes from a file.
func TestPages_ShowResults(t *testing.T) {
	const root = "../../"
	dir := root + results
	q, err := open(dir, "quality")
	require.NoError(t, err)
	asked, err := open(dir, "retrieval")
	require.NoError(t, err)
	kl, err := open(dir, "ablation")
	require.NoError(t, err)
	found, err := open(dir, "ablation-retrieval")
	require.NoError(t, err)
	one, two := asked.Exact.Retrieval, found.Exact.Retrieval
	require.InDelta(t, one.Nats, two.Nats, 1e-4, "other questions, or another model") // rounding goes with the build
	require.Equal(t, one.Kinds, two.Kinds, "other questions")
	for page, rows := range map[string][]row{shortPage: shortRows, longPage: rows} {
		text, err := os.ReadFile(root + page)
		require.NoError(t, err)
		want, err := markers.Splice(string(text), table(rows, q, asked, found))
		require.NoError(t, err)
		require.Equal(t, want, string(text), "%s: run: make tables", page)
		for _, r := range rows {
			require.NotNil(t, find(q, r.method), r.name)
		}
	}

	g, err := open(dir, "gemma")
	require.NoError(t, err)
	text, err := os.ReadFile(root + longPage)
	require.NoError(t, err)
	want, err := gemmaMarkers.Splice(string(text), worstTable(gemmaRows, g))
	require.NoError(t, err)
	require.Equal(t, want, string(text), "run: make tables")
	for _, r := range gemmaRows {
		require.NotNil(t, find(g, r.method), r.name)
	}

	page, err := os.ReadFile(dir + "/signals.md")
	require.NoError(t, err)
	require.Equal(t, signals(kl, found), string(page), "run: make tables")
	for _, w := range ways {
		require.NotNil(t, find(kl, "kvist:2.25"+w.method), w.name)
		require.NotNil(t, find(found, "kvist:2.25"+w.method), w.name)
	}
}

func TestPages_ShowMachines(t *testing.T) {
	const root = "../../"
	names, all, err := openMachines(root + results)
	require.NoError(t, err)
	require.Contains(t, names, headlineMachine)
	short := machineHeadline(names, all)
	require.Contains(t, short, "| f16 |")
	require.Contains(t, short, "| kvist, 1.5 bits |")
	for page, table := range map[string]string{shortPage: short, longPage: machineTables(names, all)} {
		text, err := os.ReadFile(root + page)
		require.NoError(t, err)
		want, err := machineMarkers.Splice(string(text), table)
		require.NoError(t, err)
		require.Equal(t, want, string(text), "%s: run: make tables", page)
	}
}

func TestPicture_ShowsResults(t *testing.T) {
	q, err := open("../../"+results, "quality")
	require.NoError(t, err)
	for _, l := range lines {
		require.GreaterOrEqual(t, len(l.points(q)), 2, l.label)
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the last digits of coordinates depend on fused products")
	}
	svg, err := picture(q)
	require.NoError(t, err)
	text, err := os.ReadFile("../../" + results + "/" + pictureFile)
	require.NoError(t, err)
	require.Equal(t, svg, string(text), "run: make tables")
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0.00093: "0.00093", 0.0000412: "0.000041", 0.0301: "0.030", 1.234: "1.2"} {
		require.Equal(t, want, number(x))
	}
}
