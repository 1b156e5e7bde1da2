// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
)

// ReportErrors is a Comparison without NaN.
type Errors struct {
	KError      *float64      `json:"k_error"`
	VError      *float64      `json:"v_error"`      // nil for rows
	FutureError *float64      `json:"future_error"` // nil where not measured
	SideTensors int           `json:"side_tensors"` // found identical
	Layers      []LayerErrors `json:"layers"`       // as Report.Layers
}

// ReportLayerError is a LayerError without NaN.
type LayerErrors struct {
	Name        string   `json:"name"`
	KError      *float64 `json:"k_error"`
	VError      *float64 `json:"v_error"`
	KCosine     *float64 `json:"k_cosine"`
	VCosine     *float64 `json:"v_cosine"`
	FutureError *float64 `json:"future_error"`
}

func reportErrors(c *Comparison, hasV bool) *Errors {
	e := &Errors{
		KError:      number(c.KError),
		FutureError: number(c.FutureError),
		SideTensors: c.SideTensors,
		Layers:      []LayerErrors{},
	}
	if hasV {
		e.VError = number(c.VError)
	}
	for _, l := range c.Layers {
		x := LayerErrors{Name: l.Name, KError: number(l.KError), KCosine: number(l.KCosine),
			FutureError: number(l.FutureError)}
		if hasV {
			x.VError, x.VCosine = number(l.VError), number(l.VCosine)
		}
		e.Layers = append(e.Layers, x)
	}
	return e
}

// number returns x, or nil where it is no number that JSON could hold.
func number(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}
