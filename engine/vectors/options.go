// SPDX-License-Identifier: Apache-2.0

package vectors

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Metric says what makes two vectors alike.
type Metric uint8

// The metrics.
const (
	// InnerProduct: the larger, the more alike.
	InnerProduct Metric = iota
	// Cosine is the inner product of vectors of unit length. Rows and queries are scaled when they come.
	Cosine
	// L2 is the squared Euclidean distance: the smaller, the more alike. It costs 4 bytes a row.
	L2
	metrics
)

// String returns "ip", "cosine" or "l2".
func (m Metric) String() string {
	if m < metrics {
		return [...]string{"ip", "cosine", "l2"}[m]
	}
	return fmt.Sprintf("Metric(%d)", uint8(m))
}

// ParseMetric reads what String writes.
//
// Errors: quant.ErrUnsupported.
func ParseMetric(s string) (Metric, error) {
	for m := range metrics {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("kvist/vectors: metric %q, want ip, cosine or l2: %w", s, quant.ErrUnsupported)
}

// Options say what Calibrate aims at.
type Options struct {
	// Bytes are the bytes of a row: codes, factor and norm, and its share of the basis if Rows says how many
	// rows share it. Ids are not among them.
	Bytes float64
	// Rows is the number of rows that will be added, 0 if the basis is to be left out of Bytes.
	Rows   int
	Metric Metric
	// Tilt is how much more bits count in the directions in which queries are large: components are worth
	// their variance times their second moment to this power. 0 means 0.75; negative means none.
	Tilt float64
	// ISA chooses the instruction set; see scan.Open.
	ISA string
}

// maxDim is the largest number of values of a row.
const maxDim = quant.MaxDim

// The numbers of rows that Calibrate takes.
const (
	minSample = 64
	maxSample = 10_000
)

func (o Options) tilt() float64 {
	switch {
	case o.Tilt == 0:
		return 0.75
	case o.Tilt < 0:
		return 0
	}
	return o.Tilt
}

func (o Options) check() error {
	switch {
	case o.Metric >= metrics:
		return fmt.Errorf("kvist/vectors: %s: %w", o.Metric, quant.ErrUnsupported)
	case !(o.Bytes > 0 && o.Bytes < math.MaxInt32) || o.Rows < 0 || !(math.Abs(o.Tilt) <= 4):
		return fmt.Errorf("kvist/vectors: options: %g bytes, %d rows, tilt %g: %w", o.Bytes, o.Rows, o.Tilt,
			quant.ErrShape)
	}
	return nil
}

// Hit is a row that a search found.
type Hit struct {
	ID uint64
	// Score is the estimated inner product or cosine, the larger the better, or the squared distance, the
	// smaller the better. Where rows are rescored it is exact.
	Score float32

	row int
}

// Source gives back the original rows. Its methods are called from many goroutines.
type Source interface {
	// Row writes the row of an id.
	Row(id uint64, dst []float32) error
}

// Rescore says that the best rows are to be compared again, by their originals.
type Rescore struct {
	Factor int    // k*Factor rows are read; 0 means 4
	Source Source // nil: no rescoring
}

// SearchOptions are the options of a search. The zero value searches head first, without filter.
type SearchOptions struct {
	// Filter says which ids may be found; nil: all. It is called from many goroutines.
	Filter  func(id uint64) bool
	Rescore Rescore
	// Exhaustive compares whole rows. Otherwise, where rows have a head, the heads of all rows are compared
	// first, and then the whole of the best Candidates. Of the ten rows that an exhaustive search finds 0 to 2 %
	// are then missed; bench/results/vectors.md has the rate.
	Exhaustive bool
	Candidates int // 0 means the larger of 200 and 20 k, three times as many if rows are rescored
	// Workers is the number of goroutines, 0 for GOMAXPROCS. Queries are divided among them.
	Workers int
}

// most bounds k and Candidates.
const most = 1 << 24
