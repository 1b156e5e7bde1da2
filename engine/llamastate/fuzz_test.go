// SPDX-License-Identifier: Apache-2.0

package llamastate_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/kvist-project/kvist/engine/atomicfile"
	"github.com/kvist-project/kvist/engine/capture"
	"github.com/kvist-project/kvist/engine/llamastate"
	"github.com/kvist-project/kvist/quant"
)

// category reports whether an error says what is wrong with a file.
func category(err error) bool {
	for _, c := range []error{quant.ErrCorrupt, quant.ErrVersion, quant.ErrUnsupported, quant.ErrTooLarge, quant.ErrShape,
		quant.ErrRange} {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// What opens can be written as rows and restored to the same bytes; what does not says why.
func FuzzOpen(f *testing.F) {
	for _, c := range sorted() {
		f.Add(c.m.build(f))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			t.Skip("the seeds are smaller")
		}
		s, err := llamastate.Open("fuzz", bytes.NewReader(raw), int64(len(raw)), llamastate.Limits{})
		if err != nil {
			if !category(err) {
				t.Fatal(err)
			}
			return
		}
		s.Info()
		src := through(t, func(w *atomicfile.Scratch) error { return s.Rows(context.Background(), w) })
		if !bytes.Equal(raw, restored(t, src)) {
			t.Fatal("other bytes")
		}
		for _, facts := range []llamastate.Facts{plain(16), windowed(16), plain(64)} {
			w, err := atomicfile.NewScratch()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if err := s.Capture(context.Background(), w, facts, nil); err != nil && !category(err) {
				t.Fatal(err)
			}
		}
	})
}

// A frame is as hostile as a file.
func FuzzRestore(f *testing.F) {
	var sources []*capture.Source
	for _, c := range sorted() {
		src := captured(f, open(f, c.m.build(f)), c.f)
		info, _ := src.Lookup(llamastate.NameFrame)
		b := make([]byte, info.Bytes)
		if err := src.ReadAt(info.Name, 0, b); err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(len(sources)))
		sources = append(sources, src)
	}
	f.Fuzz(func(t *testing.T, frame []byte, which uint8) {
		src := sources[int(which)%len(sources)]
		forged := changed(t, src, llamastate.NameFrame, func([]byte) []byte { return frame })
		if _, err := llamastate.Restore(context.Background(), forged, io.Discard); err != nil && !category(err) {
			t.Fatal(err)
		}
	})
}
