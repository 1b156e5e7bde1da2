// SPDX-License-Identifier: Apache-2.0

package model

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// letterWord matches the pattern of Llama 3 (three digits) and Qwen 2 (one):
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}|
//	 ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
func letterWord(digits int) func(s string) int {
	return func(s string) int {
		if n := contraction(s); n > 0 {
			return n
		}
		lead := leadLen(s)
		if n := runLen(s[lead:], classLetter); n > 0 {
			return lead + n
		}
		return otherWord(s, digits, "\r\n")
	}
}

// casedWord matches the pattern of GPT-4o (three digits, contractions) and of Mistral's Tekken (one
// digit, none), which cuts words where small letters end. With U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}],
// l = [\p{Ll}\p{Lm}\p{Lo}\p{M}] and c the contractions of letterWord:
//
//	[^\r\n\p{L}\p{N}]?U*l+c?|[^\r\n\p{L}\p{N}]?U+l*c?|\p{N}{1,digits}|
//	 ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
func casedWord(digits int, contractions bool) func(s string) int {
	return func(s string) int {
		lead := leadLen(s)
		n := 0
		for _, match := range []func(string) int{upperLower, upperRun} {
			for _, from := range []int{lead, 0} {
				if m := match(s[from:]); n == 0 && m > 0 {
					n = from + m
				}
			}
		}
		if n == 0 {
			return otherWord(s, digits, "\r\n/")
		}
		if contractions {
			n += contraction(s[n:])
		}
		return n
	}
}

func isUpper(r rune) bool {
	return unicode.In(r, unicode.Lu, unicode.Lt, unicode.Lm, unicode.Lo, unicode.M)
}
func isLower(r rune) bool { return unicode.In(r, unicode.Ll, unicode.Lm, unicode.Lo, unicode.M) }

// runOf returns the length of the run of characters with a property at the start of s.
func runOf(s string, is func(rune) bool) int {
	for i := 0; i < len(s); {
		r, w := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && w == 1 || !is(r) {
			return i
		}
		i += w
	}
	return len(s)
}

// upperLower matches U*l+: U takes all that it can and gives back as little as l needs.
func upperLower(s string) int {
	upper := runOf(s, isUpper)
	if n := runOf(s[upper:], isLower); n > 0 {
		return upper + n
	}
	for upper > 0 {
		r, w := utf8.DecodeLastRuneInString(s[:upper])
		if isLower(r) {
			return upper
		}
		upper -= w
	}
	return 0
}

// upperRun matches U+l* where upperLower does not match: no small letter follows.
func upperRun(s string) int { return runOf(s, isUpper) }

// leadLen is the length of the character that "[^\r\n\p{L}\p{N}]?" takes.
func leadLen(s string) int {
	r, w := utf8.DecodeRuneInString(s)
	if cls := classOf(r, w); r == '\r' || r == '\n' || cls == classLetter || cls == classNumber {
		return 0
	}
	return w
}

// contraction is the length of "(?i:'s|'t|'re|'ve|'m|'ll|'d)" at the start of s. Case folding is that of
// Unicode, in which the long s of old print is an s.
func contraction(s string) int {
	if s == "" || s[0] != '\'' {
		return 0
	}
	for _, c := range contractions {
		n := 0
		for range len(c) {
			_, w := utf8.DecodeRuneInString(s[n:])
			n += w
		}
		if strings.EqualFold(s[:n], c) {
			return n
		}
	}
	return 0
}

// otherWord matches what is not a word of letters: up to so many numbers, other characters with a space
// before them and some of after behind them, and white space.
func otherWord(s string, digits int, after string) int {
	r, w := utf8.DecodeRuneInString(s)
	if classOf(r, w) == classNumber {
		n := 0
		for i := 0; i < digits && n < len(s); i++ {
			r, w := utf8.DecodeRuneInString(s[n:])
			if classOf(r, w) != classNumber {
				break
			}
			n += w
		}
		return n
	}
	lead := 0
	if s[0] == ' ' {
		lead = 1
	}
	if n := runLen(s[lead:], classOther); n > 0 {
		n += lead
		return n + len(s[n:]) - len(strings.TrimLeft(s[n:], after))
	}
	space := s[:runLen(s, classSpace)]
	if i := strings.LastIndexAny(space, "\r\n"); i >= 0 {
		return i + 1
	}
	return spaceLen(s)
}
