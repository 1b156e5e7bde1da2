// SPDX-License-Identifier: Apache-2.0

// Package clients holds the server against the official clients of OpenAI's API, which are used as they are.
// make check-openai runs it: KVIST_URL is that of a server whose API key is KVIST_KEY.
package clients

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func connect(t *testing.T, key string) openai.Client {
	t.Helper()
	url := os.Getenv("KVIST_URL")
	if url == "" {
		t.Skip("KVIST_URL is not set: make check-openai sets it")
	}
	return openai.NewClient(option.WithBaseURL(url+"/v1"), option.WithAPIKey(key), option.WithMaxRetries(0))
}

func must[T any](t *testing.T) func(T, error) T {
	return func(x T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

func question(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "smollm2", Temperature: openai.Float(0), MaxTokens: openai.Int(24),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Answer in one short sentence."),
			openai.UserMessage(text)}}
}

func TestGoClient(t *testing.T) {
	c, ctx := connect(t, os.Getenv("KVIST_KEY")), context.Background()
	models := must[[]openai.Model](t)(func() ([]openai.Model, error) {
		p, err := c.Models.List(ctx)
		if err != nil {
			return nil, err
		}
		return p.Data, nil
	}())
	if len(models) != 1 || models[0].ID != "smollm2" {
		t.Fatalf("models: %+v", models)
	}
	q := question("What is the capital of France?")
	whole := must[*openai.ChatCompletion](t)(c.Chat.Completions.New(ctx, q))
	text := whole.Choices[0].Message.Content
	if !strings.Contains(text, "Paris") || whole.Usage.CompletionTokens == 0 {
		t.Fatalf("%+v", whole)
	}
	q.StreamOptions.IncludeUsage = openai.Bool(true)
	s := c.Chat.Completions.NewStreaming(ctx, q)
	all := openai.ChatCompletionAccumulator{}
	for s.Next() {
		if !all.AddChunk(s.Current()) {
			t.Fatalf("chunk does not fit: %+v", s.Current())
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if all.Choices[0].Message.Content != text || all.Choices[0].FinishReason != whole.Choices[0].FinishReason ||
		all.Usage.CompletionTokens != whole.Usage.CompletionTokens {
		t.Fatalf("streamed %+v, whole %+v", all, whole)
	}
	plain := must[*openai.Completion](t)(c.Completions.New(ctx, openai.CompletionNewParams{Model: "smollm2",
		Prompt:    openai.CompletionNewParamsPromptUnion{OfString: openai.String("The capital of Germany is")},
		MaxTokens: openai.Int(4), Temperature: openai.Float(0)}))
	if !strings.Contains(plain.Choices[0].Text, "Berlin") {
		t.Fatalf("%+v", plain)
	}
}

func TestGoClient_Errors(t *testing.T) {
	ctx := context.Background()
	code := func(c openai.Client, q openai.ChatCompletionNewParams) (int, string) {
		_, err := c.Chat.Completions.New(ctx, q)
		var e *openai.Error
		if !errors.As(err, &e) {
			t.Fatalf("%T %v", err, err)
		}
		return e.StatusCode, e.Code
	}
	if status, c := code(connect(t, "wrong"), question("hi")); status != 401 || c != "invalid_api_key" {
		t.Fatal(status, c)
	}
	q := question("hi")
	q.N = openai.Int(3)
	if status, c := code(connect(t, os.Getenv("KVIST_KEY")), q); status != 400 || c != "unsupported" {
		t.Fatal(status, c)
	}
}
