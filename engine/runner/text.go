// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/quant"
)

// Text turns the tokens of an answer into text as they come: whole characters only, and up to the first
// of some strings that end the answer.
type Text struct {
	t    *model.Tokenizer
	stop []string
	held []byte // that may be the start of a character or of a stop
	done bool
}

// NewText returns a Text that ends at any of the strings of stop; empty ones are ignored.
func NewText(t *model.Tokenizer, stop []string) *Text {
	return &Text{t: t, stop: slices.DeleteFunc(slices.Clone(stop), func(s string) bool { return s == "" })}
}

// Add returns the text that a token completes, and whether a stop was found. Then the answer is over and the
// stop is not part of it.
//
// Errors: those of Tokenizer.Decode.
func (x *Text) Add(token int32) (text string, stopped bool, err error) {
	if x.done {
		return "", true, nil
	}
	b, err := x.t.Decode([]int32{token})
	if err != nil {
		return "", false, err
	}
	x.held = append(x.held, b...)
	at := len(x.held)
	for _, s := range x.stop {
		if i := strings.Index(string(x.held), s); i >= 0 && i < at {
			at, x.done = i, true
		}
	}
	if x.done {
		text, x.held = string(x.held[:at]), nil
		return strings.ToValidUTF8(text, "\ufffd"), true, nil
	}
	n := len(x.held) - x.mayStop()
	n -= partial(x.held[:n])
	text = strings.ToValidUTF8(string(x.held[:n]), "\ufffd")
	x.held = append(x.held[:0], x.held[n:]...)
	return text, false, nil
}

// Flush returns what was held back, when no token comes any more.
func (x *Text) Flush() string {
	s := strings.ToValidUTF8(string(x.held), "\ufffd")
	x.held = nil
	return s
}

// mayStop returns the length of the longest end of what is held that a stop begins with.
func (x *Text) mayStop() (n int) {
	for _, s := range x.stop {
		for k := min(len(s)-1, len(x.held)); k > n; k-- {
			if strings.HasSuffix(string(x.held), s[:k]) {
				n = k
			}
		}
	}
	return n
}

// partial returns the length of an incomplete character at the end of b.
func partial(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// markText are the marks of Prompt, of characters for private use.
var markText = regexp.MustCompile(`\x{e000}[0-9]+\x{e001}`)

// Prompt writes a conversation in the form that the model was trained on, up to the start of the
// assistant's turn. What a message says is text only: names of control tokens in it are spelt out.
//
// Errors: those of ChatFormat.Prompt and Tokenizer.Start.
func Prompt(t *model.Tokenizer, messages []model.Message) ([]int32, error) {
	named := false
	for _, m := range messages {
		special, err := t.Encode(m.Content, true)
		if err != nil {
			return nil, err
		}
		plain, err := t.Encode(m.Content, false)
		if err != nil {
			return nil, err
		}
		named = named || !slices.Equal(special, plain)
	}
	if !named {
		text, err := t.Chat.Prompt(messages)
		if err != nil {
			return nil, err
		}
		return t.Start(text, true)
	}
	// Marks stand for the contents while the format is written around them.
	marked := make([]model.Message, len(messages))
	for i, m := range messages {
		if mark := markText.FindString(m.Content); mark != "" {
			return nil, fmt.Errorf("kvist/runner: write prompt: a message names control tokens, message %d holds %q: %w",
				i, mark, quant.ErrUnsupported)
		}
		marked[i] = model.Message{Role: m.Role, Content: fmt.Sprintf("\ue000%d\ue001", i)}
	}
	rest, err := t.Chat.Prompt(marked)
	if err != nil {
		return nil, err
	}
	var tokens []int32
	for i, m := range messages {
		before, after, _ := strings.Cut(rest, marked[i].Content)
		encode := t.Continue
		if i == 0 {
			encode = t.Start
		}
		part, err := encode(before, true)
		if err != nil {
			return nil, err
		}
		content, err := t.Continue(m.Content, false)
		if err != nil {
			return nil, err
		}
		tokens = append(append(tokens, part...), content...)
		rest = after
	}
	last, err := t.Continue(rest, true)
	return append(tokens, last...), err
}
