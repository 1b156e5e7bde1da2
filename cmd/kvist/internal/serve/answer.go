// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/kvist-project/kvist/engine/runner"
)

// form is how one kind of completion is written.
type form struct {
	kind          string // of ids
	object, chunk string // "chat.completion", "chat.completion.chunk"
	// choice returns the choice of an answer, or of a part of one.
	choice func(text string, tokens []runner.Token, finish any, streamed, first bool) map[string]any
}

// answer is one answer under way.
type answer struct {
	s      *Server
	w      http.ResponseWriter
	form   form
	req    *common
	id     string
	made   int64
	text   *runner.Text
	all    strings.Builder
	tokens []runner.Token // not written yet
	begun  bool           // headers were sent
	timer  *timer
}

// chat answers /v1/chat/completions.
func (s *Server) chat(w http.ResponseWriter, r *http.Request, salt []byte) error {
	var c chatRequest
	if err := s.readJSON(w, r, &c); err != nil {
		return err
	}
	q, err := c.request(s, salt)
	if err != nil {
		return err
	}
	f := form{kind: "chatcmpl", object: "chat.completion", chunk: "chat.completion.chunk"}
	f.choice = func(text string, tokens []runner.Token, finish any, streamed, first bool) map[string]any {
		m := map[string]any{"content": text}
		if first || !streamed {
			m["role"] = "assistant"
		}
		out := map[string]any{"index": 0, "finish_reason": finish, "logprobs": nil}
		if c.LogProbs {
			out["logprobs"] = map[string]any{"content": s.chatLogProbs(tokens), "refusal": nil}
		}
		if streamed {
			if finish != nil && text == "" {
				delete(m, "content")
			}
			out["delta"] = m
			return out
		}
		m["refusal"] = nil
		out["message"] = m
		return out
	}
	return s.answer(w, r, q, &c.common, f)
}

// completions answers /v1/completions.
func (s *Server) completions(w http.ResponseWriter, r *http.Request, salt []byte) error {
	var c completionRequest
	if err := s.readJSON(w, r, &c); err != nil {
		return err
	}
	q, err := c.request(s, salt)
	if err != nil {
		return err
	}
	f := form{kind: "cmpl", object: "text_completion", chunk: "text_completion"}
	at := 0
	f.choice = func(text string, tokens []runner.Token, finish any, _, _ bool) map[string]any {
		out := map[string]any{"index": 0, "text": text, "finish_reason": finish, "logprobs": nil}
		if c.LogProbs != nil {
			out["logprobs"] = s.textLogProbs(tokens, &at)
		}
		return out
	}
	return s.answer(w, r, q, &c.common, f)
}

// answer runs a request and writes what comes of it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, q runner.Request, c *common, f form) error {
	if s.draining.Load() {
		return &apiError{http.StatusServiceUnavailable, "server_error", "", "draining", "the server is ending"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	a := &answer{s: s, w: w, form: f, req: c, id: newID(f.kind), made: time.Now().Unix(),
		text: runner.NewText(s.cfg.Runner.Model().Tokenizer(), c.Stop), timer: s.metrics.start()}
	res, err := s.cfg.Runner.Generate(ctx, q, a.token)
	if err == nil {
		err = a.end(res)
	}
	a.timer.end(res, err)
	if err == nil || !a.begun {
		return err
	}
	// The headers are gone: what went wrong is the last event.
	if e := apiErrorOf(err); e.status != 499 {
		s.cfg.Log.Warn("kvist: stream ended early", "error", e.Message)
		_ = a.event(e.body())
	}
	return nil
}

// token takes a token of the answer.
func (a *answer) token(t runner.Token) error {
	a.timer.token()
	text, stopped, err := a.text.Add(t.ID)
	if err != nil {
		return err
	}
	a.all.WriteString(text)
	a.tokens = append(a.tokens, t)
	if a.req.Stream && (text != "" || !a.begun) {
		if err := a.part(text, nil); err != nil {
			return err
		}
	}
	if stopped {
		return runner.ErrStop
	}
	return nil
}

// part writes a part of the answer.
func (a *answer) part(text string, finish any) error {
	first := !a.begun
	choice := a.form.choice(text, a.tokens, finish, true, first)
	a.tokens = nil
	return a.event(a.object(a.form.chunk, []any{choice}))
}

// object is what all objects of an answer have.
func (a *answer) object(kind string, choices []any) map[string]any {
	return map[string]any{"id": a.id, "object": kind, "created": a.made, "model": a.s.cfg.Model, "choices": choices,
		"system_fingerprint": "kvist-" + a.s.cfg.Version}
}

// end writes what comes after the last token.
func (a *answer) end(res runner.Result) error {
	usage := map[string]any{"prompt_tokens": res.Prompt, "completion_tokens": res.Answer,
		"total_tokens": res.Prompt + res.Answer, "prompt_tokens_details": map[string]any{"cached_tokens": res.Cached}}
	extra := map[string]any{"conversation": res.Conversation, "queued_ms": res.Queued.Milliseconds(),
		"first_ms": res.First.Milliseconds(), "total_ms": res.Total.Milliseconds()}
	rest := a.text.Flush()
	if !a.req.Stream {
		a.all.WriteString(rest)
		out := a.object(a.form.object, []any{a.form.choice(a.all.String(), a.tokens, res.Finish, false, true)})
		out["usage"], out["kvist"] = usage, extra
		a.deadline()
		writeJSON(a.w, http.StatusOK, out)
		return nil
	}
	if rest != "" || len(a.tokens) > 0 {
		if err := a.part(rest, nil); err != nil {
			return err
		}
	}
	last := a.object(a.form.chunk, []any{a.form.choice("", nil, res.Finish, true, !a.begun)})
	last["kvist"] = extra
	if err := a.event(last); err != nil {
		return err
	}
	if a.req.StreamOptions != nil && a.req.StreamOptions.IncludeUsage {
		u := a.object(a.form.chunk, []any{})
		u["usage"] = usage
		if err := a.event(u); err != nil {
			return err
		}
	}
	return a.write([]byte("data: [DONE]\n\n"))
}

// event writes one server-sent event.
func (a *answer) event(x any) error {
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if !a.begun {
		a.begun = true
		h := a.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Accel-Buffering", "no")
		a.w.WriteHeader(http.StatusOK)
	}
	return a.write(append(append([]byte("data: "), b...), "\n\n"...))
}

// deadline gives the client so much time to receive the next part.
func (a *answer) deadline() {
	_ = http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(a.s.cfg.WriteTimeout))
}

// write sends a part of a stream at once. A client that does not take it ends the answer.
func (a *answer) write(b []byte) error {
	a.deadline()
	if _, err := a.w.Write(b); err != nil {
		return errors.Join(context.Canceled, err)
	}
	if err := http.NewResponseController(a.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return errors.Join(context.Canceled, err)
	}
	return nil
}

// chatLogProbs are the tokens of a chat with what the model gave them.
func (s *Server) chatLogProbs(tokens []runner.Token) []any {
	out := []any{}
	for _, t := range tokens {
		x := s.logProb(t.ID, t.LogProb)
		top := []any{}
		for _, a := range t.Alternatives {
			top = append(top, s.logProb(a.ID, a.LogProb))
		}
		x["top_logprobs"] = top
		out = append(out, x)
	}
	return out
}

func (s *Server) logProb(id int32, p float64) map[string]any {
	b := s.piece(id)
	bytes := make([]int, len(b))
	for i, c := range b {
		bytes[i] = int(c)
	}
	return map[string]any{"token": valid(b), "logprob": p, "bytes": bytes}
}

// textLogProbs are the tokens of a text completion with what the model gave them. at is the offset of the first.
func (s *Server) textLogProbs(tokens []runner.Token, at *int) map[string]any {
	names, probs, offsets, tops := []string{}, []float64{}, []int{}, []any{}
	for _, t := range tokens {
		b := s.piece(t.ID)
		names, probs, offsets = append(names, valid(b)), append(probs, t.LogProb), append(offsets, *at)
		*at += len(b)
		top := map[string]float64{}
		for _, a := range t.Alternatives {
			top[valid(s.piece(a.ID))] = a.LogProb
		}
		tops = append(tops, top)
	}
	return map[string]any{"tokens": names, "token_logprobs": probs, "top_logprobs": tops, "text_offset": offsets}
}

// piece is the text of one token.
func (s *Server) piece(id int32) []byte {
	b, err := s.cfg.Runner.Model().Tokenizer().Decode([]int32{id})
	if err != nil { // not one of the vocabulary: it cannot have been sampled
		return nil
	}
	return b
}

func valid(b []byte) string { return strings.ToValidUTF8(string(b), "\ufffd") }
