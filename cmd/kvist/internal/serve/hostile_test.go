// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/serve"
	"github.com/kvist-project/kvist/engine/runner"
)

// A prompt in a list of one is the prompt; what is neither text nor tokens is refused, however deep.
func TestCompletions_ListsOfPrompts(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{})
	ask := func(prompt string) (int, map[string]any) {
		return s.do("POST", "/v1/completions", `{"prompt":`+prompt+`,"temperature":0,"ignore_eos":true,"max_tokens":4}`)
	}
	code, want := ask(`"abc"`)
	require.Equal(t, 200, code)
	for _, p := range []string{`["abc"]`, ` [ "abc" ] `, `[99,100,101]`, `[[99,100,101]]`} {
		code, got := ask(p)
		require.Equal(t, 200, code, got)
		require.Equal(t, 3.0, at(got, "usage", "prompt_tokens"), p)
		if strings.Contains(p, "abc") {
			require.Equal(t, at(want, "choices", 0, "text"), at(got, "choices", 0, "text"), p)
		}
	}
	for _, p := range []string{`[1,null]`, `[null]`, `[[1,null]]`, `null`, `[]`, `[[]]`, `[""]`, `[1,"a"]`, `["a",1]`, `[1.5]`,
		`[[["abc"]]]`, `{"a":1}`, `[{}]`, `true`, strings.Repeat("[", 5000) + `"` + strings.Repeat("a", 1<<20) + `"` + strings.Repeat("]", 5000)} {
		code, got := ask(p)
		require.Equal(t, 400, code, "%.20s: %v", p, got)
		require.Equal(t, "prompt", at(got, "error", "param"), "%.20s", p)
	}
}

// Requests of another key's conversations are as those of ones that never were.
func TestKeys_NothingOfOthers(t *testing.T) {
	s := start(t, serve.Config{Keys: []string{"one", "two"}}, runner.Options{Folder: t.TempDir()})
	s.key = "one"
	long := strings.Repeat("of one key only ", 20)
	code, out := s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, long, 4, ""))
	require.Equal(t, 200, code, out)
	id := at(out, "kvist", "conversation").(string)
	for _, parked := range []bool{false, true} {
		if s.key = "one"; parked {
			code, out = s.do("POST", "/v1/kvist/conversations/"+id+"/park", "")
			require.Equal(t, 200, code, out)
		}
		s.key = "two"
		code, out = s.do("GET", "/v1/kvist/conversations", "")
		require.Equal(t, 200, code)
		require.Empty(t, at(out, "data"))
		for _, r := range [][3]string{{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/fade", `{"share":1}`}, {"POST", "/pin", `{"on":true}`}, {"POST", "/park", ""}} {
			code, mine := s.do(r[0], "/v1/kvist/conversations/"+id+r[1], r[2])
			require.Equal(t, http.StatusNotFound, code, mine)
			code, none := s.do(r[0], "/v1/kvist/conversations/"+strings.Repeat("0", len(id))+r[1], r[2])
			require.Equal(t, http.StatusNotFound, code)
			require.Equal(t, at(none, "error", "code"), at(mine, "error", "code"))
		}
		// Another salt of the same key, so that the second time finds nothing of the first.
		_, out = s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, long, 1, fmt.Sprintf(`,"cache_salt":"%v"`, parked)))
		require.Equal(t, 0.0, at(out, "usage", "prompt_tokens_details", "cached_tokens"))
	}
	for _, path := range []string{"/v1/kvist/conversations/..%2f..%2fnotes", "/v1/kvist/conversations/%00", "/v1/kvist/conversations/.json"} {
		code, _ := s.do("GET", path, "")
		require.Equal(t, http.StatusNotFound, code, path)
	}
}

// Text that no context holds is refused before it is taken apart; names of fields are those of the request.
func TestRequests_LongTexts(t *testing.T) {
	s := start(t, serve.Config{}, runner.Options{})
	long := strings.Repeat(" ", 64*2048)
	for path, body := range map[string]string{
		"/v1/chat/completions": `{"messages":[{"role":"user","content":"` + long + `"}]}`,
		"/v1/completions":      `{"prompt":["` + long + `"]}`,
	} {
		code, out := s.do("POST", path, body)
		require.Equal(t, 400, code)
		require.Equal(t, "context_length_exceeded", at(out, "error", "code"))
		require.Contains(t, at(out, "error", "message"), "at least 2048 tokens")
	}
	code, out := s.do("POST", "/v1/completions", `{"prompt":"a","temperature":"hot"}`)
	require.Equal(t, 400, code)
	require.Equal(t, "temperature", at(out, "error", "param"))
}
