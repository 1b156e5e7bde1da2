// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/kvist-project/kvist/engine/model"
	"github.com/kvist-project/kvist/engine/runner"
)

// common are the fields that chat and text completions share.
type common struct {
	Model            string             `json:"model"`
	Stream           bool               `json:"stream"`
	StreamOptions    *streamOptions     `json:"stream_options"`
	MaxTokens        *int               `json:"max_tokens"`
	Temperature      *float64           `json:"temperature"`
	TopP             *float64           `json:"top_p"`
	TopK             *int               `json:"top_k"` // as in vLLM; -1 and 0: all
	MinP             *float64           `json:"min_p"` // as in vLLM
	PresencePenalty  *float64           `json:"presence_penalty"`
	FrequencyPenalty *float64           `json:"frequency_penalty"`
	LogitBias        map[string]float32 `json:"logit_bias"`
	Seed             *int64             `json:"seed"`
	Stop             stops              `json:"stop"`
	N                *int               `json:"n"`
	IgnoreEOS        bool               `json:"ignore_eos"` // as in vLLM
	CacheSalt        string             `json:"cache_salt"` // as in vLLM
	Kvist            hints              `json:"kvist"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// hints say how the conversation is to be kept.
type hints struct {
	Pin    bool    `json:"pin"`
	Fade   float64 `json:"fade"`
	Budget int64   `json:"budget"`
	Forget bool    `json:"forget"`
	Save   bool    `json:"save"`
}

// stops are a string or a list of them.
type stops []string

// UnmarshalJSON implements json.Unmarshaler.
func (s *stops) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	var one string
	if json.Unmarshal(b, &one) == nil {
		*s = stops{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(b, &list); err != nil || len(list) > 16 {
		return badValue("stop", "stop: want a string, or up to 16 of them")
	}
	*s = list
	return nil
}

// request returns what the runner is asked for, without the tokens. most is the default of max_tokens.
func (c *common) request(s *Server, salt []byte, most int) (q runner.Request, err error) {
	if c.Model != "" && c.Model != s.cfg.Model {
		return q, noModel(c.Model)
	}
	if c.N != nil && *c.N != 1 {
		return q, unsupported("n", "n is %d: this server gives one answer", *c.N)
	}
	q = runner.Request{MaxTokens: most, IgnoreEnd: c.IgnoreEOS, Salt: salt, Pin: c.Kvist.Pin, Fade: c.Kvist.Fade,
		Budget: c.Kvist.Budget, Forget: c.Kvist.Forget, Save: c.Kvist.Save}
	if c.CacheSalt != "" {
		sum := sha256.Sum256([]byte(c.CacheSalt))
		q.Salt = append(append([]byte(nil), salt...), sum[:]...)
	}
	if c.MaxTokens != nil {
		if q.MaxTokens = *c.MaxTokens; q.MaxTokens < 1 {
			return q, badValue("max_tokens", "max_tokens is %d, want 1 or more", q.MaxTokens)
		}
	}
	p := &q.Sampling
	p.Temperature, p.Seed = 1, rand.Uint64()
	for _, f := range []struct {
		from *float64
		to   *float64
	}{{c.Temperature, &p.Temperature}, {c.TopP, &p.TopP}, {c.MinP, &p.MinP}, {c.PresencePenalty, &p.Presence},
		{c.FrequencyPenalty, &p.Frequency}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if c.TopK != nil && *c.TopK != -1 {
		p.TopK = *c.TopK
	}
	if c.Seed != nil {
		p.Seed = uint64(*c.Seed)
	}
	for k, v := range c.LogitBias {
		id, err := strconv.ParseInt(k, 10, 32)
		if err != nil {
			return q, badValue("logit_bias", "logit_bias: %q is no token", k)
		}
		if p.Bias == nil {
			p.Bias = map[int32]float32{}
		}
		p.Bias[int32(id)] = v
	}
	return q, nil
}

// chatRequest is the body of /v1/chat/completions. Fields that it does not list change nothing in the answer
// of a text model, as user, store and metadata.
type chatRequest struct {
	common
	Messages            []chatMessage   `json:"messages"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	LogProbs            bool            `json:"logprobs"`
	TopLogProbs         int             `json:"top_logprobs"`
	Tools               []any           `json:"tools"`
	Functions           []any           `json:"functions"`
	ResponseFormat      *responseFormat `json:"response_format"`
	Modalities          []string        `json:"modalities"`
	Audio               any             `json:"audio"`
}

type responseFormat struct {
	Type string `json:"type"`
}

type chatMessage struct {
	Role      string  `json:"role"`
	Content   content `json:"content"`
	ToolCalls []any   `json:"tool_calls"`
}

// content is a text, or a list of parts that are texts.
type content string

// UnmarshalJSON implements json.Unmarshaler.
func (c *content) UnmarshalJSON(b []byte) error {
	var text string
	if bytes.Equal(b, []byte("null")) || json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return badValue("messages", "content: want a string or a list of parts")
	}
	var all strings.Builder
	for _, p := range parts {
		if p.Type != "text" {
			return unsupported("messages", "content of type %q: this server reads text", p.Type)
		}
		all.WriteString(p.Text)
	}
	*c = content(all.String())
	return nil
}

// request returns what the runner is asked for.
func (c *chatRequest) request(s *Server, salt []byte) (q runner.Request, err error) {
	switch {
	case len(c.Tools) > 0:
		return q, unsupported("tools", "tools are not supported")
	case len(c.Functions) > 0:
		return q, unsupported("functions", "functions are not supported")
	case c.ResponseFormat != nil && c.ResponseFormat.Type != "text" && c.ResponseFormat.Type != "":
		return q, unsupported("response_format", "response_format %q: this server writes text", c.ResponseFormat.Type)
	case c.Audio != nil:
		return q, unsupported("audio", "audio is not supported")
	case len(c.Messages) == 0:
		return q, badValue("messages", "messages: none")
	case c.TopLogProbs < 0 || c.TopLogProbs > runner.MostAlternatives:
		return q, badValue("top_logprobs", "top_logprobs is %d, want 0 to %d", c.TopLogProbs, runner.MostAlternatives)
	case c.TopLogProbs > 0 && !c.LogProbs:
		return q, badValue("top_logprobs", "top_logprobs needs logprobs")
	}
	for _, m := range c.Modalities {
		if m != "text" {
			return q, unsupported("modalities", "modality %q: this server writes text", m)
		}
	}
	if c.MaxCompletionTokens != nil {
		c.MaxTokens = c.MaxCompletionTokens
	}
	if q, err = c.common.request(s, salt, 0); err != nil {
		return q, err
	}
	q.Sampling.Alternatives = c.TopLogProbs
	messages, size := make([]model.Message, len(c.Messages)), 0
	for i, m := range c.Messages {
		if size += len(m.Content); s.tooLong(size) {
			return q, s.longPrompt("messages")
		}
		role := m.Role
		if role == "developer" {
			role = "system"
		}
		if role == "tool" || role == "function" || len(m.ToolCalls) > 0 {
			return q, unsupported("messages", "message %d: tools are not supported", i)
		}
		messages[i] = model.Message{Role: role, Content: string(m.Content)}
	}
	q.Tokens, err = runner.Prompt(s.cfg.Runner.Model().Tokenizer(), messages)
	if err != nil {
		e := apiErrorOf(err)
		e.Param = "messages"
		return q, e
	}
	return q, nil
}

// completionRequest is the body of /v1/completions.
type completionRequest struct {
	common
	Prompt   prompt `json:"prompt"`
	Echo     bool   `json:"echo"`
	Suffix   string `json:"suffix"`
	LogProbs *int   `json:"logprobs"`
	BestOf   *int   `json:"best_of"`
}

// prompt is a text, its tokens, or a list of one such.
type prompt struct {
	text   string
	tokens []int32
	given  bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *prompt) UnmarshalJSON(b []byte) error {
	p.given = true
	var list []json.RawMessage
	if json.Unmarshal(b, &list) != nil || list == nil {
		return p.one(b)
	}
	if len(list) == 0 || isNumber(list[0]) {
		return p.one(b)
	}
	if len(list) != 1 {
		return unsupported("prompt", "prompt: a list of %d; this server takes one prompt in a request", len(list))
	}
	return p.one(list[0])
}

// isNumber reports whether a JSON value is a number, by how it begins.
func isNumber(b json.RawMessage) bool {
	return len(b) > 0 && (b[0] == '-' || b[0] >= '0' && b[0] <= '9')
}

// one reads a text or the list of its tokens.
func (p *prompt) one(b []byte) error {
	if json.Unmarshal(b, &p.text) == nil {
		return nil
	}
	var tokens []*int32 // a null would be taken for a zero
	if json.Unmarshal(b, &tokens) != nil || slices.Contains(tokens, nil) {
		return badValue("prompt", "prompt: want a string or tokens")
	}
	p.tokens = []int32{}
	for _, t := range tokens {
		p.tokens = append(p.tokens, *t)
	}
	return nil
}

// request returns what the runner is asked for.
func (c *completionRequest) request(s *Server, salt []byte) (q runner.Request, err error) {
	switch {
	case !c.Prompt.given:
		return q, badValue("prompt", "prompt: none")
	case c.Echo:
		return q, unsupported("echo", "echo is not supported")
	case c.Suffix != "":
		return q, unsupported("suffix", "suffix is not supported")
	case c.BestOf != nil && *c.BestOf != 1:
		return q, unsupported("best_of", "best_of is %d: this server gives one answer", *c.BestOf)
	case c.LogProbs != nil && (*c.LogProbs < 0 || *c.LogProbs > runner.MostAlternatives):
		return q, badValue("logprobs", "logprobs is %d, want 0 to %d", *c.LogProbs, runner.MostAlternatives)
	}
	if q, err = c.common.request(s, salt, 16); err != nil {
		return q, err
	}
	if c.LogProbs != nil {
		q.Sampling.Alternatives = *c.LogProbs
	}
	if s.tooLong(len(c.Prompt.text)) {
		return q, s.longPrompt("prompt")
	}
	if q.Tokens = c.Prompt.tokens; q.Tokens == nil {
		// Names of control tokens in a prompt are control tokens: who sends a raw prompt writes the form itself.
		if q.Tokens, err = s.cfg.Runner.Model().Tokenizer().Start(c.Prompt.text, true); err != nil {
			return q, badValue("prompt", "prompt: %s", packagePrefix.ReplaceAllString(err.Error(), ""))
		}
	}
	if len(q.Tokens) == 0 {
		return q, badValue("prompt", "prompt: no tokens")
	}
	return q, nil
}

// tooLong reports whether so many bytes are more than the context can hold, so that nobody need take them apart:
// 4 MB of spaces take 16 s.
func (s *Server) tooLong(bytes int) bool { return bytes/s.longest >= s.cfg.Runner.Context() }

func (s *Server) longPrompt(param string) error {
	return &apiError{http.StatusBadRequest, invalid, param, "context_length_exceeded",
		fmt.Sprintf("a prompt of at least %d tokens, the context is %[1]d and the answer needs one", s.cfg.Runner.Context())}
}

// newID returns a number for an answer.
func newID(kind string) string {
	return fmt.Sprintf("%s-%016x%016x", kind, rand.Uint64(), rand.Uint64())
}
