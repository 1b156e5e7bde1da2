// SPDX-License-Identifier: Apache-2.0

// Package serve is HTTP in front of a runner.Runner: the calls of OpenAI's API that text models answer,
// metrics, and a page that shows what the cache keeps. It knows no policy: who is admitted, what fades and what
// is shared is decided in engine/runner and engine.
//
// # Routes
//
//	POST /v1/chat/completions, /v1/completions       answers, whole or as server-sent events
//	GET  /v1/models, /v1/models/{id}                 the one model
//	GET  /v1/kvist/conversations                     conversations of the caller's key
//	GET  /v1/kvist/conversations/{id}                one of them, token by token
//	POST /v1/kvist/conversations/{id}/fade, /pin     {"share": 0.5}, {"on": true}
//	POST /v1/kvist/conversations/{id}/park           moves it to the folder of the server
//	DELETE /v1/kvist/conversations/{id}              forgets it
//	GET  /health, /metrics, /                        state; Prometheus; the inspector
//
// A request may carry hints in a field "kvist": {"pin": true, "fade": 0.5, "budget": 1048576, "save": true, "forget": true};
// and, as with vLLM, "cache_salt". Answers carry {"kvist": {"conversation": ID}}.
//
// # Errors
//
// Every error is a JSON object as OpenAI gives it: {"error": {"message", "type", "param", "code"}}. What a request
// asks for and this server does not do is refused with status 400 and code "unsupported"; it is never ignored
// when it would change the answer.
//
// # Security
//
// With keys, every route under /v1 needs one; keys are compared in constant time. The salt of a conversation
// comes from the key, so that no request finds, reads or times the prompts of another key. Without keys, and when
// the server listens on a loopback address, requests for other host names are refused: a page in a browser could
// otherwise reach it through a name of its own. Bodies, headers, waiting and writing are bounded.
//
// # Concurrency
//
// A Server is an http.Handler and may be used from many goroutines.
package serve
