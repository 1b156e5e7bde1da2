// SPDX-License-Identifier: Apache-2.0

package cold

import (
	"math"
)

// Prediction is what a file says of its error: squared errors, counted in the squared steps in which
// they cost the same everywhere, relative to what the rows hold beside their means.
type Prediction struct {
	Now    float64 // of the file as it is
	Error  float64 // of the one that is made of it
	Afresh float64 // of one coded at that size from the start
}

// Predict says what to expect of the file with so many bytes less. One that keeps as many refinements
// everywhere is about what coding afresh makes of its size: those sizes tell what it makes of others.
func (t *Truncator) Predict(less int64) Prediction {
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
		bits := 8 * (size - aim) / float64(max(1, t.h.Values()))
		p.Afresh = share(err * math.Exp2(2*bits))
	} else {
		p.Afresh = share(err * math.Pow(aim/size, slope))
	}
	return p
}

// stage returns what a refinement takes and is worth in all records.
func (t *Truncator) stage(n int) (bytes, worth float64) {
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

func (t *Truncator) stages() (most int) {
	for _, x := range t.order {
		most = max(most, len(x.parts.Refined))
	}
	return most
}
