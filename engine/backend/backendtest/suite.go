// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/backend"
	"github.com/kvist-project/kvist/quant"
	"github.com/kvist-project/kvist/quant/quanttest"
)

// RunBackend runs the whole suite. open returns a fresh backend, which the suite closes. With
// -short the suite runs a part of its matrix.
func RunBackend(t *testing.T, open func(t *testing.T) backend.Backend) {
	run(t, open, parts)
	t.Run("closed", func(t *testing.T) { testClosed(t, open(t)) })
	t.Run("foreign", func(t *testing.T) {
		a, b := open(t), open(t)
		defer func() { require.NoError(t, a.Close()); require.NoError(t, b.Close()) }()
		testForeign(t, a, b)
	})
}

// RunAttention runs only the tests of Attend and Relevance, for a backend that computes them in
// more than one way.
//
// d says how coarse its numbers are, beyond those of a correct float32 backend: the zero Digits for none. With others
// Attend alone is tested.
func RunAttention(t *testing.T, d Digits, open func(t *testing.T) backend.Backend) {
	digits = d
	defer func() { digits = Digits{} }()
	var some []part
	for _, p := range parts {
		if strings.HasPrefix(p.name, "attend") || strings.HasPrefix(p.name, "relevance") && d.Takes == nil ||
			p.name == "repeat" {
			some = append(some, p)
		}
	}
	run(t, open, some)
}

func run(t *testing.T, open func(t *testing.T) backend.Backend, parts []part) {
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			b := open(t)
			defer func() { require.NoError(t, b.Close()) }()
			p.run(t, b)
		})
	}
}

// part is one test of the suite.
type part struct {
	name string
	run  func(t *testing.T, b backend.Backend)
}

var parts = []part{
	{"caps", testCaps},
	{"buffers", testBuffers},
	{"supports", testSupports},
	{"encode", testEncode},
	{"encode-same-type", testEncodeSameType},
	{"encode-range", testEncodeRange},
	{"encode-arguments", testEncodeArguments},
	{"decode", testDecode},
	{"decode-any-bytes", testDecodeAnyBytes},
	{"decode-arguments", testDecodeArguments},
	{"demote", testDemote},
	{"demote-arguments", testDemoteArguments},
	{"gather", testGather},
	{"gather-arguments", testGatherArguments},
	{"table", testTable},
	{"table-arguments", testTableArguments},
	{"table-concurrent", testTableConcurrent},
	{"attend", testAttendMatrix},
	{"attend-mixed", testAttendMixed},
	{"attend-planes", testAttendPlanes},
	{"attend-count", testAttendCount},
	{"attend-unseen", testAttendUnseen},
	{"attend-nothing", testAttendNothing},
	{"attend-split", testAttendSplit},
	{"attend-order", testAttendOrder},
	{"attend-pieces", testAttendPieces},
	{"attend-long", testAttendLong},
	{"attend-terms", testAttendTerms},
	{"attend-limit", testAttendLimit},
	{"attend-invariance", testInvariance},
	{"attend-arguments", testAttendArguments},
	{"residuals", testResiduals},
	{"residuals-arguments", testResidualsArguments},
	{"relevance", testRelevance},
	{"relevance-arguments", testRelevanceArguments},
	{"weigh", testWeigh},
	{"repeat", testRepeat},
	{"concurrent", testConcurrent},
	{"cancelled", testCancelled},
}

// dims returns the row lengths of the matrix. Only exact codings support rows of 5.
func dims() []int {
	if testing.Short() {
		return []int{5, 8, 64, 80}
	}
	return []int{5, 8, 64, 80, 96, 128, 256}
}

// rowCounts returns the row counts of the matrix.
func rowCounts() []int {
	if testing.Short() {
		return []int{0, 1, 7, 33}
	}
	return []int{0, 1, 7, 31, 32, 33, 257}
}

// groups returns the GQA ratios of the matrix.
func groups() []int {
	if testing.Short() {
		return []int{1, 3}
	}
	return []int{1, 3, 4, 8}
}

// codingsFor returns the codings that b supports for op at dim.
func codingsFor(b backend.Backend, op backend.Op, dim int) []quant.Coding {
	var cs []quant.Coding
	for _, c := range quanttest.Codings() {
		if b.Supports(op, c, dim) {
			cs = append(cs, c)
		}
	}
	return cs
}

func mustCoding(t testing.TB, s string) quant.Coding {
	c, err := quant.ParseCoding(s)
	require.NoError(t, err)
	return c
}

// pack encodes with package quant.
func pack(t testing.TB, c quant.Coding, x quant.Rows, seed uint64) []byte {
	t.Helper()
	p := make([]byte, c.PackedBytes(x.Len(), x.Dim))
	require.NoError(t, quant.Encode(p, c, x, seed))
	return p
}

// unpack decodes with package quant.
func unpack(t testing.TB, c quant.Coding, p []byte, rows, dim int, seed uint64) quant.Rows {
	t.Helper()
	x := quant.Rows{Dim: dim, Data: make([]float32, rows*dim)}
	require.NoError(t, quant.Decode(x, c, p, seed))
	return x
}
