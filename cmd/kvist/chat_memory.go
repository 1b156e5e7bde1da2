// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/runner"
)

// memoryJSON is what /memory prints with --json.
type memoryJSON struct {
	Tokens int         `json:"tokens"`
	Bytes  int64       `json:"bytes"`
	Exact  int64       `json:"exact_bytes"`
	Budget int64       `json:"budget_bytes"`
	Held   int64       `json:"held_bytes"`
	Bits   []classJSON `json:"bits"`
	Kept   []keptJSON  `json:"kept"`
}

type classJSON struct {
	Name   string  `json:"name"`
	Tokens int     `json:"tokens"`
	Share  float64 `json:"share"`
}

type keptJSON struct {
	Text    string  `json:"text"`
	Bits    float32 `json:"bits"`
	Weight  float32 `json:"weight"`
	FadedAt int32   `json:"faded_at"`
}

// memory shows what the cache keeps of the conversation.
func (c *chat) memory(ctx context.Context) error {
	if c.id == "" {
		err := errors.New("/memory: nothing was said yet")
		if c.terminal {
			c.a.complain("%s", oneLine(err))
			return nil
		}
		return err
	}
	d, err := c.r.Describe(ctx, lone, c.id)
	if err != nil {
		return err
	}
	if c.f.json {
		return c.printLine(c.memoryJSON(d))
	}
	p := &printer{w: c.a.stdout}
	p.printf("%s tokens in %s; in f16 they take %s, %.1f times as much\n", count(int64(d.Tokens)), bytesText(d.Bytes),
		bytesText(d.Exact), float64(d.Exact)/float64(max(d.Bytes, 1)))
	p.printf("the cache holds %s of its %s: these rows, descriptors, kept queries, working memory\n", bytesText(d.Held),
		bytesText(d.Budget))
	t := newTable([]any{"kept at", "tokens", "share"}, 1, 2)
	for _, k := range classesOf(d) {
		t.AppendRow([]any{k.Name, count(int64(k.Tokens)), share(int64(k.Tokens), int64(d.Tokens))})
	}
	p.table(t)
	if p.err != nil || !c.colour {
		return p.err
	}
	if err := flush(c.a.stdout); err != nil {
		return err
	}
	return c.paint(c.a.binary, d)
}

// classesOf counts the tokens by how sharply they are kept.
func classesOf(d runner.Description) []classJSON {
	out := make([]classJSON, len(bitClasses))
	for i, k := range bitClasses {
		out[i].Name = k.name
	}
	for _, x := range d.Kept {
		out[bitClass(x.Bits)].Tokens++
	}
	for i := range out {
		out[i].Share = float64(out[i].Tokens) / float64(max(d.Tokens, 1))
	}
	return out
}

func (c *chat) memoryJSON(d runner.Description) memoryJSON {
	out := memoryJSON{Tokens: d.Tokens, Bytes: d.Bytes, Exact: d.Exact, Budget: d.Budget, Held: d.Held,
		Bits: classesOf(d)}
	for i, id := range d.All {
		out.Kept = append(out.Kept, keptJSON{tokenText(c.m.Tokenizer(), id), d.Kept[i].Bits, d.Kept[i].Weight,
			d.Fading[i].At})
	}
	return out
}

// paint writes the tokens on the colours of how sharply they are kept. What a terminal would act on in them is
// shown; the colours are the only sequences.
func (c *chat) paint(w io.Writer, d runner.Description) error {
	var b strings.Builder
	for _, k := range bitClasses {
		fmt.Fprintf(&b, "\x1b[48;5;%s;38;5;231m %s \x1b[0m ", k.ansi, k.name)
	}
	b.WriteString("\n\n")
	for i, id := range d.All {
		colour := fmt.Sprintf("\x1b[48;5;%s;38;5;231m", bitClasses[bitClass(d.Kept[i].Bits)].ansi)
		for j, line := range strings.Split(visible.Text(tokenText(c.m.Tokenizer(), id)), "\n") {
			if j > 0 {
				b.WriteString("\n")
			}
			if line != "" {
				b.WriteString(colour + line + "\x1b[0m")
			}
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}
