// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
)

// progressAfter is how long work may take before it is worth a bar.
const progressAfter = time.Second

// progress is told what is done and how much of it.
type progress func(stage string, done, total int64)

// say calls p, unless it is nil.
func (p progress) say(stage string, done, total int64) {
	if p != nil {
		p(stage, done, total)
	}
}

// progress returns what reports long work on standard error, and what clears it away. Where
// standard error is no terminal nothing is reported.
func (a *app) progress() (progress, func()) {
	f, ok := a.console.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	b := &bars{w: f, start: time.Now()}
	return b.say, b.clear
}

// bars shows one bar at a time.
type bars struct {
	w     io.Writer
	start time.Time
	mu    sync.Mutex
	bar   *progressbar.ProgressBar
	stage string
}

func (b *bars) say(stage string, done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.start) < progressAfter || total <= 0 {
		return
	}
	if b.bar == nil || b.stage != stage {
		b.finish()
		b.stage = stage
		b.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetDescription(visible.Line(stage)), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(true))
	}
	_ = b.bar.Set64(min(done, total)) // a bar that cannot be drawn is no reason to stop
}

func (b *bars) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finish()
}

func (b *bars) finish() {
	if b.bar != nil {
		_ = b.bar.Clear()
		b.bar = nil
	}
}
