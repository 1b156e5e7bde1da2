// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"fmt"
	"math"

	"github.com/kvist-project/kvist/quant"
)

// Prediction is what a file says of its error: squared errors, counted in the squared steps in which
// they cost the same everywhere, relative to what the rows hold beside their means.
type Prediction struct {
	Now    float64 // of the file as it is
	Error  float64 // of the one that is made of it
	Afresh float64 // of one coded at that size from the start
}

// Times returns how many times the error of coding afresh is; 1 where it is no larger.
func (p *Prediction) Times() float64 {
	if p.Error <= p.Afresh {
		return 1
	}
	return p.Error / p.Afresh
}

// MaxTimesAfresh is the most that the predicted error of a truncated file may be, in errors of coding
// afresh.
const MaxTimesAfresh = 2

// CoarseError says that a truncated file would have lost more than MaxTimesAfresh allows, or whole heads,
// which a mean may hide. It matches quant.ErrBudget.
type CoarseError struct {
	Bytes     int64 // asked for
	Heads     int   // as Truncated has them
	Predicted Prediction
}

// Error names the predicted error and what is lost.
func (e *CoarseError) Error() string {
	p, heads := &e.Predicted, ""
	if e.Heads > 0 {
		heads = fmt.Sprintf(" and %d times a head would lose all K or V of a segment", e.Heads)
	}
	return fmt.Sprintf("kvist/kvfile: %d bytes: the predicted error is %.3g %% (%.3g %% now), %.3g times that of coding the "+
		"original at that size, where at most %d times is good%s", e.Bytes, 100*p.Error, 100*p.Now, p.Times(), MaxTimesAfresh, heads)
}

// Unwrap returns quant.ErrBudget.
func (e *CoarseError) Unwrap() error { return quant.ErrBudget }

// predict says what to expect of the file with so many bytes less. One that keeps as many refinements
// everywhere is about what coding afresh makes of its size: those sizes tell what it makes of others.
func (t *truncator) predict(less int64) Prediction {
	size, err := float64(t.r.Size()), t.err
	aim := max(size-float64(less), 1)
	share := func(err float64) float64 {
		if t.energy == 0 {
			return 0
		}
		return min(err/t.energy, 1)
	}
	p := Prediction{Now: share(t.err), Error: share(t.err + t.added)}
	slope := math.NaN()
	for n := t.stages() - 1; n >= 0; n-- {
		bytes, worth := t.stage(n)
		if bytes == 0 || worth == 0 || err == 0 {
			continue
		}
		slope = math.Log((err+worth)/err) / math.Log((size-bytes)/size)
		if size-bytes <= aim {
			break
		}
		size, err = size-bytes, err+worth
	}
	if math.IsNaN(slope) { // 6 dB a bit
		bits := 8 * (size - aim) / float64(max(1, Values(t.h)))
		p.Afresh = share(err * math.Exp2(2*bits))
	} else {
		p.Afresh = share(err * math.Pow(aim/size, slope))
	}
	return p
}

// stage returns what a refinement takes and is worth in all records.
func (t *truncator) stage(n int) (bytes, worth float64) {
	for _, x := range t.order {
		if n >= len(x.parts.Refined) {
			continue
		}
		for _, s := range x.parts.Refined[n] {
			if s.Bytes > 0 {
				bytes, worth = bytes+float64(s.Bytes), worth+s.Worth
			}
		}
	}
	return bytes, worth
}

func (t *truncator) stages() (most int) {
	for _, x := range t.order {
		most = max(most, len(x.parts.Refined))
	}
	return most
}
