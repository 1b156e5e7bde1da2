// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// windDown is how long work may go on after a signal. Most work looks at its context far more often,
// but a write to a pipe that nobody reads never returns. Ending in the middle is safe: an output gets
// its name only when it is whole.
const windDown = 3 * time.Second

// signalError is a signal that ended the work: why the context of a verb is cancelled.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string { return e.signal.String() }

// status is the exit status for the signal: what a shell says of a process that it ended.
func (e *signalError) status() int {
	if e.signal == os.Interrupt {
		return exitInterrupted
	}
	return exitTerminated
}

// interruptStatus is the exit status of work that ended because ctx was cancelled.
func interruptStatus(ctx context.Context) int {
	var s *signalError
	if errors.As(context.Cause(ctx), &s) {
		return s.status()
	}
	return exitInterrupted
}

// interrupts lets a verb take signals for itself: in a chat a SIGINT ends an answer, not the program; a server
// gives answers time to end.
type interrupts struct {
	mu   sync.Mutex
	take func(os.Signal) bool
}

type interruptsKey struct{}

// onSignal has take called with each signal from now on, until the function that it returns is called. A
// signal for which it returns true does nothing else. Without signals, as in tests, it does nothing.
func onSignal(ctx context.Context, take func(os.Signal) bool) (stop func()) {
	h, ok := ctx.Value(interruptsKey{}).(*interrupts)
	if !ok {
		return func() {}
	}
	h.set(take)
	return func() { h.set(nil) }
}

func (h *interrupts) set(take func(os.Signal) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.take = take
}

// took reports whether the verb has taken a signal for itself.
func (h *interrupts) took(s os.Signal) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.take != nil && h.take(s)
}

// untilSignal returns a context that the first SIGINT, SIGTERM or SIGHUP cancels. A second SIGINT
// or SIGTERM calls exit at once, and so does work that does not wind down. A SIGHUP that the process
// was started to ignore, as under nohup, stays ignored. A SIGINT does not: shells have every process
// ignore it that a script starts in the background, and whoever sends it to one means it.
func untilSignal(parent context.Context, exit func(int)) (context.Context, func()) {
	hook := &interrupts{}
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, interruptsKey{}, hook))
	watched := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		watched = append(watched, syscall.SIGHUP)
	}
	got, done := make(chan os.Signal, 4), make(chan struct{})
	signal.Notify(got, watched...)
	go func() {
		var why *signalError
		for why == nil {
			select {
			case s := <-got:
				if !hook.took(s) {
					why = &signalError{s}
					cancel(why)
				}
			case <-done:
				return
			}
		}
		late := time.NewTimer(windDown)
		defer late.Stop()
		for {
			select {
			case s := <-got:
				// A terminal that closes sends SIGHUP more than once, and some managers send one
				// behind every SIGTERM: that is nobody's second wish.
				if s != syscall.SIGHUP {
					exit((&signalError{s}).status())
				}
			case <-late.C:
				exit(why.status())
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(got)
		close(done)
		cancel(nil)
	}
}
