// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/kvist-project/kvist/quant"
)

// final are the errors that another try does not change. What is damaged may have been damaged on its way: it is
// read again.
var final = []error{fs.ErrExist, fs.ErrNotExist, quant.ErrFull, quant.ErrTooLarge, quant.ErrShape, quant.ErrUnsupported,
	quant.ErrVersion, quant.ErrClosed}

func isFinal(err error) bool {
	for _, f := range final {
		if errors.Is(err, f) {
			return true
		}
	}
	return false
}

// try calls f until it succeeds, fails for good, or the tries are used up.
func (s *Store) try(ctx context.Context, f func(context.Context) error) (err error) {
	if err := s.resting(); err != nil {
		return err
	}
	pause := s.o.Pause
	for i := range s.o.Tries {
		if i > 0 {
			if e := s.wait(ctx, pause/2+rand.N(pause/2+1)); e != nil {
				return e
			}
			pause = min(2*pause, mostPause)
		}
		err = s.once(ctx, f)
		switch {
		case err == nil:
			s.awake()
			return nil
		case ctx.Err() != nil: // the caller's, not the try's
			return ctx.Err()
		case isFinal(err):
			s.awake()
			return err
		}
	}
	if errors.Is(err, quant.ErrCorrupt) {
		return err // the service is there, and what it holds is damaged
	}
	err = &awayError{s.o.Tries, err}
	s.rest(err)
	return err
}

// awayError is quant.ErrUnavailable of a service.
type awayError struct {
	tries int
	cause error
}

// Error names the last cause.
func (e *awayError) Error() string {
	return fmt.Sprintf("the service has failed %d times: %v", e.tries, e.cause)
}

// Unwrap returns the category and the cause.
func (e *awayError) Unwrap() []error { return []error{quant.ErrUnavailable, e.cause} }

func (s *Store) once(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	return f(ctx)
}

// wait pauses, unless the caller gives up or the store is closed.
func (s *Store) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return errClosed
	}
}

// resting returns why calls fail at once, nil if they do not. When the rest is over, one call tries first: others go
// on failing until it has ended or another rest has passed.
func (s *Store) resting() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		return nil
	}
	now := time.Now()
	if now.Before(s.rested) {
		return fmt.Errorf("not tried again before %v have passed: %w", s.o.Rest, s.cause)
	}
	s.rested = now.Add(s.o.Rest)
	return nil
}

func (s *Store) rest(cause error) {
	if s.o.Rest < 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rested, s.cause = time.Now().Add(s.o.Rest), cause
}

func (s *Store) awake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cause = nil
}
