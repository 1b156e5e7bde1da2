// SPDX-License-Identifier: Apache-2.0

package kvfile

import (
	"context"
	"fmt"
	"io"

	"github.com/kvist-project/kvist/engine/container"
	"github.com/kvist-project/kvist/engine/internal/cold"
	"github.com/kvist-project/kvist/quant"
)

// Truncated describes the result of Truncate.
type Truncated struct {
	Bytes        int64
	BitsPerValue float64
	// Streams and Dropped count the streams that the file had, and those dropped.
	Streams, Dropped int
	// Heads counts the sides of heads, over all segments, that lost all their rows.
	Heads int
	// Predicted is the error to expect of the file that was written.
	Predicted Prediction
}

// Truncate writes a coarser file of at most total bytes. It drops streams, first those that lower the
// error least for their bytes. Nothing is decoded or coded again, and neither original nor profile is
// needed. A file made with Config.Chunks has streams that halve the steps of tokens; of another only
// whole heads can be dropped. Without Options.Force, Truncate refuses to lose a head, and a predicted
// error of more than twice that of coding the original at that size.
//
// Errors: *CoarseError; quant.ErrBudget where all streams dropped would not do;
// *container.CorruptError.
func Truncate(ctx context.Context, r *container.Reader, w io.Writer, total int64,
	o Options) (*Truncated, error) {
	t, err := cold.Survey(ctx, r, o.Progress)
	if err != nil {
		return nil, err
	}
	if err := t.Drop(total); err != nil {
		return nil, err
	}
	res := &Truncated{Streams: t.Streams(), Predicted: Prediction(t.Predict(r.Size() - total))}
	res.Dropped, res.Heads = t.Dropped()
	if p := res.Predicted; !o.Force && res.Dropped > 0 && (res.Heads > 0 || !(p.Times() <= maxTimesAfresh)) {
		return nil, &CoarseError{Bytes: total, Heads: res.Heads, Predicted: p}
	}
	if res.Bytes, err = t.Write(ctx, w); err != nil {
		return nil, err
	}
	res.BitsPerValue = quant.BitsPerValue(res.Bytes, r.Header().Values())
	return res, nil
}

// Prediction holds the squared errors that a file predicts. They count squared steps, which cost the
// same everywhere, relative to the energy of the rows less their means.
type Prediction struct {
	Now    float64 // of the file as it is
	Error  float64 // of the truncated file
	Afresh float64 // of the original coded at that size
}

// Times returns Error/Afresh, and 1 if Error is not larger.
func (p *Prediction) Times() float64 {
	if p.Error <= p.Afresh {
		return 1
	}
	return p.Error / p.Afresh
}

// maxTimesAfresh bounds Prediction.Times of a file that is written without Options.Force.
const maxTimesAfresh = 2

// CoarseError reports that a truncated file would have more than twice the predicted error of coding
// the original at that size, or would lose whole heads, which a mean may hide. It matches
// quant.ErrBudget.
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
		"original at that size, where at most %d times is good%s", e.Bytes, 100*p.Error, 100*p.Now, p.Times(), maxTimesAfresh, heads)
}

// Unwrap returns quant.ErrBudget.
func (e *CoarseError) Unwrap() error { return quant.ErrBudget }
