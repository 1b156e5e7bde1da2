// SPDX-License-Identifier: Apache-2.0

package model

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The "smollm" pre-tokenizer: every number character (Unicode category N) is a word of its own. The
// text between them is split by the pattern of GPT-2,
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// It is matched by hand because package regexp has no lookahead. A byte that is not UTF-8 is a
// character that is neither space nor letter nor number.

type charClass uint8

const (
	classOther charClass = iota
	classSpace
	classLetter
	classNumber
)

func classOf(r rune, width int) charClass {
	switch {
	case r == utf8.RuneError && width == 1:
		return classOther
	case unicode.IsSpace(r):
		return classSpace
	case unicode.IsLetter(r):
		return classLetter
	case unicode.IsNumber(r):
		return classNumber
	}
	return classOther
}

// pretokenize calls word with the words of text in order. Joined they are text.
func pretokenize(text string, word func(string) error) error {
	for len(text) > 0 {
		// The text up to the next number character is split by itself: the lookahead of \s+
		// must not see the number.
		stretch, number := len(text), 0
		for i := 0; i < len(text); {
			r, w := utf8.DecodeRuneInString(text[i:])
			if classOf(r, w) == classNumber {
				stretch, number = i, w
				break
			}
			i += w
		}
		for part := text[:stretch]; len(part) > 0; {
			n := wordLen(part)
			if err := word(part[:n]); err != nil {
				return err
			}
			part = part[n:]
		}
		if number > 0 {
			if err := word(text[stretch : stretch+number]); err != nil {
				return err
			}
		}
		text = text[stretch+number:]
	}
	return nil
}

var contractions = [...]string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

// wordLen returns the length in bytes of the first match of the pattern in s. s is not empty and
// has no number character.
func wordLen(s string) int {
	for _, c := range contractions {
		if strings.HasPrefix(s, c) {
			return len(c)
		}
	}
	// " ?\p{L}+" and " ?[^\s\p{L}\p{N}]+"
	lead := 0
	if s[0] == ' ' && len(s) > 1 {
		lead = 1
	}
	r, w := utf8.DecodeRuneInString(s[lead:])
	if cls := classOf(r, w); cls != classSpace {
		return lead + w + runLen(s[lead+w:], cls)
	}
	// "\s+(?!\S)": a run of spaces. If a word follows, the run ends before its last space, which
	// begins the word if it is ' ' and is a word of its own ("\s+") otherwise.
	n := runLen(s, classSpace)
	if n < len(s) {
		if _, last := utf8.DecodeLastRuneInString(s[:n]); last < n {
			n -= last
		}
	}
	return n
}

// runLen returns the length in bytes of the run of characters of one class at the start of s.
func runLen(s string, cls charClass) int {
	for i := 0; i < len(s); {
		r, w := utf8.DecodeRuneInString(s[i:])
		if classOf(r, w) != cls {
			return i
		}
		i += w
	}
	return len(s)
}
