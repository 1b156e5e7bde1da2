// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kvist-project/kvist/cmd/kvist/internal/visible"
	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
	"github.com/kvist-project/kvist/quant"
)

type chatFlags struct {
	answerFlags
	sampling samplingFlags
	system   string
	json     bool
}

const chatCommands = `  /memory       what the cache keeps of this conversation, token by token
  /fade SHARE   let it give up a share of its bytes, as 50%, what costs least first
  /pin, /unpin  keep it as it is under pressure; no longer
  /save FILE    write it to a file, with the rows as they are
  /load FILE    go on with one that was written, without computing it again
  /reset        begin anew
  /help         this list
  /quit         end; so does the end of the input`

func newChat(a *app) *cobra.Command {
	var f chatFlags
	cmd := &cobra.Command{
		Use:   "chat MODEL",
		Short: "Talk to a model whose cache keeps a budget",
		Long: `chat runs a model in the terminal. Its KV cache keeps --kv-budget: when that is used up, the
detail of old tokens fades where it costs least.

MODEL is a GGUF file, or smollm2: the SmolLM2-135M-Instruct that make model downloads, or gemma: the Gemma 3
270M of make model-gemma.

A line is a message; one that ends with \ goes on in the next line. Lines that begin with / are commands:

` + chatCommands + `

An interrupt (Ctrl-C) ends an answer; between answers it ends the program. Where standard input is no
terminal, chat answers one line after the other and prints the answers alone.

Fields of --json, one object a line for each answer: content, finish (stop, length, interrupted),
prompt_tokens, cached_tokens (of the prompt, computed before), answer_tokens, first_ms, total_ms, tokens (of the
conversation), bytes (that its rows take), exact_bytes (that they take in f16), budget_bytes. /memory adds
an object: tokens, bytes, exact_bytes, budget_bytes, held_bytes (of the whole cache), bits (tokens by the bits of
a value: name, tokens, share), kept (of each token: text, bits, weight, faded_at).`,
		Example: `  kvist chat smollm2
  kvist chat model.gguf --kv-budget 64MiB --temperature 0.7
  echo "Name three rivers." | kvist chat smollm2 --json`,
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			return a.chat(cmd.Context(), args[0], &f)
		}),
	}
	f.add(cmd)
	f.sampling.add(cmd, 0)
	cmd.Flags().StringVar(&f.system, "system", "", "`TEXT` of the system, before the first message")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object for each answer")
	return cmd
}

// chat is one conversation in the terminal.
type chat struct {
	*answering
	a        *app
	f        *chatFlags
	terminal bool // a person types
	colour   bool // standard output shows colours
	messages []model.Message
	id       string // of the conversation in the cache, after the first answer
	pin      bool
	asked    int // answers
}

func (a *app) chat(ctx context.Context, name string, f *chatFlags) (err error) {
	if f.sampling.most < 0 {
		return usagef("--max-tokens %d: want 0 or more", f.sampling.most)
	}
	w, err := f.open(a, name, runner.Options{Running: 1, Idle: 1, Logger: a.logger()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if w.m.Tokenizer().Chat == "" {
		return fmt.Errorf("%s says no form of prompts that kvist knows: it may not have been trained to chat (--format gives one): %w",
			name, quant.ErrUnsupported)
	}
	c := &chat{answering: w, a: a, f: f, terminal: isTerminal(a.stdin) && !f.json,
		colour: isTerminal(a.binary) && !f.json && os.Getenv("NO_COLOR") == ""}
	c.reset()
	if c.terminal {
		a.complain("%s", w.about())
		fmt.Fprintln(a.stderr, "/help lists the commands.")
	}
	return c.talk(ctx)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (c *chat) reset() {
	c.messages, c.id = nil, ""
	if c.f.system != "" {
		c.messages = []model.Message{{Role: "system", Content: c.f.system}}
	}
}

// talk reads messages and answers them until the input ends.
func (c *chat) talk(ctx context.Context) error {
	lines := readMessages(c.a.stdin)
	for {
		if c.terminal {
			fmt.Fprint(c.a.stderr, "> ")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l, ok := <-lines:
			switch {
			case !ok:
				return nil
			case l.err != nil:
				return l.err
			case strings.TrimSpace(l.text) == "":
				continue
			}
			end, err := c.message(ctx, l.text)
			if err == nil {
				err = flush(c.a.stdout)
			}
			if end || err != nil {
				return err
			}
		}
	}
}

// flush passes on what a writer holds back until a character is whole.
func flush(w io.Writer) error {
	if f, ok := w.(interface{ Flush() error }); ok {
		return f.Flush()
	}
	return nil
}

type message struct {
	text string
	err  error
}

// maxMessage bounds a message, in bytes.
const maxMessage = 1 << 20

// readMessages reads lines; one that ends with a backslash goes on in the next.
func readMessages(r io.Reader) <-chan message {
	out := make(chan message)
	go func() {
		defer close(out)
		s := bufio.NewScanner(r)
		s.Buffer(nil, maxMessage)
		var b strings.Builder
		for s.Scan() {
			line, more := strings.CutSuffix(s.Text(), `\`)
			b.WriteString(line)
			if more && b.Len() < maxMessage {
				b.WriteByte('\n')
				continue
			}
			out <- message{text: b.String()}
			b.Reset()
		}
		if b.Len() > 0 {
			out <- message{text: b.String()}
		}
		if err := s.Err(); err != nil {
			out <- message{err: fmt.Errorf("read standard input: %w", err)}
		}
	}()
	return out
}

// message answers a message or carries out a command.
func (c *chat) message(ctx context.Context, text string) (end bool, err error) {
	if !strings.HasPrefix(text, "/") {
		return false, c.answer(ctx, text)
	}
	name, arg, _ := strings.Cut(strings.TrimSpace(text), " ")
	switch name {
	case "/quit", "/exit", "/bye":
		return true, nil
	case "/help":
		_, err = fmt.Fprintln(c.a.stderr, chatCommands)
		return false, err
	case "/reset":
		if c.id != "" {
			err = c.r.Forget(ctx, lone, c.id)
		}
		c.reset()
		return false, err
	case "/memory":
		return false, c.memory(ctx)
	case "/save":
		err = c.save(ctx, strings.TrimSpace(arg))
	case "/load":
		err = c.load(ctx, strings.TrimSpace(arg))
	case "/pin", "/unpin":
		c.pin = name == "/pin"
		if c.id != "" {
			err = c.r.Pin(ctx, lone, c.id, c.pin)
		}
	case "/fade":
		err = c.fade(ctx, arg)
	default:
		err = fmt.Errorf("no command %s; /help lists them", name)
	}
	if err != nil && ctx.Err() == nil && c.terminal {
		c.a.complain("%s", oneLine(err))
		err = nil
	}
	return false, err
}

func (c *chat) fade(ctx context.Context, arg string) error {
	x, err := parseShare(arg)
	if err != nil {
		return fmt.Errorf("/fade %q: %w", arg, err)
	}
	if c.id == "" {
		return errors.New("/fade: nothing was said yet")
	}
	return c.r.Fade(ctx, lone, c.id, x)
}

// answerJSON is a line of --json.
type answerJSON struct {
	Content string  `json:"content"`
	Finish  string  `json:"finish"`
	Prompt  int     `json:"prompt_tokens"`
	Cached  int     `json:"cached_tokens"`
	Answer  int     `json:"answer_tokens"`
	FirstMS float64 `json:"first_ms"`
	TotalMS float64 `json:"total_ms"`
	Tokens  int     `json:"tokens"`
	Bytes   int64   `json:"bytes"`
	Exact   int64   `json:"exact_bytes"`
	Budget  int64   `json:"budget_bytes"`
}

// answer sends a message to the model and prints what it says.
func (c *chat) answer(ctx context.Context, text string) error {
	said := append(c.messages, model.Message{Role: "user", Content: text})
	prompt, err := runner.Prompt(c.m.Tokenizer(), said)
	if err != nil {
		return err
	}
	ctx2, cancel := context.WithCancel(ctx)
	defer cancel()
	var interrupted atomic.Bool
	defer onSignal(ctx, func(s os.Signal) bool { // a second one, before the answer has ended, ends the program
		if s != os.Interrupt {
			return false
		}
		cancel()
		return !interrupted.Swap(true)
	})()
	q := runner.Request{Tokens: prompt, MaxTokens: c.f.sampling.most, Sampling: c.f.sampling.Sampling, Salt: lone,
		Pin: c.pin}
	q.Sampling.Seed += uint64(c.asked)
	c.asked++
	var reply strings.Builder
	show := func(s string) error {
		reply.WriteString(s)
		if c.f.json {
			return nil
		}
		_, err := io.WriteString(c.a.stdout, s)
		return err
	}
	body := runner.NewText(c.m.Tokenizer(), nil)
	res, err := c.r.Generate(ctx2, q, func(t runner.Token) error {
		s, _, err := body.Add(t.ID)
		if err == nil && s != "" {
			err = show(s)
		}
		return err
	})
	stopped := interrupted.Load() && errors.Is(err, context.Canceled) && ctx.Err() == nil
	if stopped {
		res.Finish = "interrupted"
	} else if err != nil {
		return c.full(err)
	}
	if err := show(body.Flush()); err != nil {
		return err
	}
	c.id = res.Conversation
	c.messages = append(said, model.Message{Role: "assistant", Content: reply.String()})
	if !c.f.json {
		_, err := fmt.Fprintln(c.a.stdout)
		return err
	}
	return c.report(ctx, reply.String(), res)
}

// full tells a person who types that a conversation fits no longer, and goes on.
func (c *chat) full(err error) error {
	if !c.terminal || !errors.Is(err, quant.ErrTooLarge) && !errors.Is(err, quant.ErrFull) {
		return err
	}
	c.a.complain("%s (/reset begins anew)", oneLine(err))
	return nil
}

func (c *chat) report(ctx context.Context, content string, res runner.Result) error {
	out := answerJSON{Content: content, Finish: res.Finish, Prompt: res.Prompt, Cached: res.Cached, Answer: res.Answer,
		FirstMS: ms(res.First), TotalMS: ms(res.Total), Budget: c.budget}
	list, err := c.r.Conversations(ctx, lone)
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.ID == c.id {
			out.Tokens, out.Bytes, out.Exact = s.Tokens, s.Bytes, s.Exact
		}
	}
	return c.printLine(out)
}

// printLine writes one JSON object on a line.
func (c *chat) printLine(x any) error {
	e := json.NewEncoder(visible.NewWriter(c.a.stdout))
	e.SetEscapeHTML(false)
	return e.Encode(x)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
