// SPDX-License-Identifier: Apache-2.0

// Package visible shows what a terminal or a browser would act on. Names, metadata and texts come
// out of files that anybody may have written: an escape sequence among them could move the cursor,
// rename the window or hide a line, and a bidirectional control could make a name read as another.
//
// # Concepts
//
// Writer stands between the program and a terminal; all text goes through it. A character that
// acts is written as its number: \x1b, \u009b, \u202e; a byte that is no UTF-8 as \xff. Newlines
// and tabs pass, all else passes unchanged. Of JSON that encoding/json wrote only those characters
// are left that JSON may write as \uXXXX, so that it stays JSON.
//
// Line is for a field within a line: there a newline would forge another line. Map hands every
// string of a value to a function, for pages and for bounds.
//
// # Concurrency
//
// A Writer may be used from many goroutines. The functions are pure.
package visible

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// acts reports whether a character does something where it should be seen: the controls of ASCII
// but for newline and tab, DEL, the C1 controls, the separators of lines and paragraphs, and what
// changes the direction of text.
func acts(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < 0x20, r >= 0x7f && r <= 0x9f:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f: // marks of direction
		return true
	case r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // separators, embeddings, isolates
		return true
	}
	return false
}

// appendRune writes a character as it is, or as its number where it acts.
func appendRune(dst []byte, r rune) []byte {
	switch {
	case !acts(r):
		return utf8.AppendRune(dst, r)
	case r < 0x20: // never in JSON: encoding/json writes these itself
		return fmt.Appendf(dst, `\x%02x`, r)
	}
	return fmt.Appendf(dst, `\u%04x`, r)
}

// appendText appends text. What may be the start of a character is left over unless it is the end.
func appendText(dst, text []byte, end bool) (out, rest []byte) {
	for len(text) > 0 {
		n := 0
		for n < len(text) && text[n] < utf8.RuneSelf && !acts(rune(text[n])) {
			n++
		}
		dst, text = append(dst, text[:n]...), text[n:]
		if len(text) == 0 {
			break
		}
		if !end && !utf8.FullRune(text) {
			return dst, text
		}
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 {
			dst = fmt.Appendf(dst, `\x%02x`, text[0])
		} else {
			dst = appendRune(dst, r)
		}
		text = text[size:]
	}
	return dst, nil
}

// Text returns s with everything that acts shown; newlines and tabs stay.
func Text(s string) string {
	if plain(s) {
		return s
	}
	out, _ := appendText(make([]byte, 0, len(s)+16), []byte(s), true)
	return string(out)
}

// plain reports whether nothing in s needs to be shown.
func plain(s string) bool {
	for _, r := range s {
		if acts(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}

var breaks = strings.NewReplacer("\n", `\n`, "\t", `\t`)

// Line returns s as one line: as Text does, newlines and tabs shown too.
func Line(s string) string { return breaks.Replace(Text(s)) }

// Cut returns at most limit bytes of s, in whole characters, and says how many bytes it left out.
func Cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	n := limit
	for n > limit-utf8.UTFMax && n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s... (%d more bytes)", s[:n], len(s)-n)
}

// Writer passes text on to another writer with everything that acts shown. It holds back an
// incomplete character until the rest of it comes: call Flush at the end.
type Writer struct {
	mu   sync.Mutex
	w    io.Writer
	held []byte // the start of a character
	buf  []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes p.
//
// Errors: those of the writer below; how much of p it took is then not known, and 0 is returned.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := p
	if len(w.held) > 0 {
		text = append(w.held, p...)
	}
	out, rest := appendText(w.buf[:0], text, false)
	w.held = append([]byte(nil), rest...)
	w.buf = out[:0]
	if len(out) == 0 {
		return len(p), nil
	}
	if _, err := w.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what is held back: the start of a character that never became one.
//
// Errors: those of the writer below.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 {
		return nil
	}
	out, _ := appendText(nil, w.held, true)
	w.held = nil
	_, err := w.w.Write(out)
	return err
}
