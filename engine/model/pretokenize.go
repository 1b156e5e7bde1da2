// SPDX-License-Identifier: Apache-2.0

package model

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// pretokenizer splits text into words, within which tokens are merged. The patterns are matched by hand
// because package regexp has no lookahead. A byte that is not UTF-8 is a character that is neither
// space nor letter nor number. Vocabularies of Qwen expect text in Unicode's form NFC; this package
// does not normalise.
type pretokenizer struct {
	next       func(s string) int // length in bytes of the first word of s, which is not empty
	digits     bool               // every number character (category N) is a word of its own, before all else
	wholeWords bool               // a word that is a token is not made from merges
	bos        bool               // BOS stands before a text unless the file says otherwise
}

// pretokenizers by their name in tokenizer.ggml.pre.
var pretokenizers = map[string]pretokenizer{
	"gpt-2":            {next: wordLen},
	"smollm":           {next: wordLen, digits: true},
	"starcoder":        {next: wordLen, digits: true},
	"refact":           {next: wordLen, digits: true}, // Granite
	"llama-bpe":        {next: letterWord(3), wholeWords: true, bos: true},
	"llama3":           {next: letterWord(3), wholeWords: true, bos: true},
	"llama-v3":         {next: letterWord(3), wholeWords: true, bos: true},
	"dbrx":             {next: letterWord(3)}, // Phi-4
	"smaug-bpe":        {next: letterWord(3)},
	"qwen2":            {next: letterWord(1)},
	"deepseek-r1-qwen": {next: letterWord(1)},
	"tekken":           {next: casedWord(1, false), wholeWords: true, bos: true}, // Mistral Nemo
	"gpt-4o":           {next: casedWord(3, true)},                               // Phi-4-mini
}

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

// split calls word with the words of text in order. Joined they are text.
func (p *pretokenizer) split(text string, word func(string) error) error {
	for len(text) > 0 {
		// The text up to the next number character is split by itself: the lookahead of \s+
		// must not see the number.
		stretch, number := len(text), 0
		if p.digits {
			stretch, number = nextNumber(text)
		}
		for part := text[:stretch]; len(part) > 0; {
			n := p.next(part)
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

// nextNumber finds the first number character of text: where it is, and its bytes; 0 if there is none.
func nextNumber(text string) (at, width int) {
	for i := 0; i < len(text); {
		r, w := utf8.DecodeRuneInString(text[i:])
		if classOf(r, w) == classNumber {
			return i, w
		}
		i += w
	}
	return len(text), 0
}

var contractions = [...]string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

// wordLen matches the pattern of GPT-2:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func wordLen(s string) int {
	for _, c := range contractions {
		if strings.HasPrefix(s, c) {
			return len(c)
		}
	}
	// " ?\p{L}+", " ?\p{N}+" and " ?[^\s\p{L}\p{N}]+"
	lead := 0
	if s[0] == ' ' && len(s) > 1 {
		lead = 1
	}
	r, w := utf8.DecodeRuneInString(s[lead:])
	if cls := classOf(r, w); cls != classSpace {
		return lead + w + runLen(s[lead+w:], cls)
	}
	return spaceLen(s)
}

// spaceLen matches "\s+(?!\S)|\s+" in s, which starts with a space: a run of spaces. If a word
// follows, the run ends before its last space, which begins the word if it is ' ' and is a word of its
// own otherwise.
func spaceLen(s string) int {
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
