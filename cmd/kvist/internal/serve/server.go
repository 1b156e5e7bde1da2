// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvist-project/kvist/engine/runner"
)

// Config is what a Server is made of.
type Config struct {
	Runner *runner.Runner
	Model  string // its name in the API
	// Keys are those of which requests need one. None: requests need no key.
	Keys []string
	// Loopback says that the server listens on a loopback address only: see the package comment.
	Loopback bool
	// MaxBody bounds the bytes of a request. Default 4 MiB.
	MaxBody int64
	// Timeout bounds the time of an answer. Default 10 minutes.
	Timeout time.Duration
	// WriteTimeout bounds the time that a client may take to receive a part of an answer. Default 30 s.
	WriteTimeout time.Duration
	// Version is that of the program.
	Version string
	// Log receives requests that fail. nil: nothing is logged.
	Log *slog.Logger
}

// Server answers HTTP requests with a runner.
type Server struct {
	cfg      Config
	keys     [][sha256.Size]byte
	mux      *http.ServeMux
	metrics  *metrics
	draining atomic.Bool
	started  time.Time
	longest  int // bytes that a token stands for at most
}

// New returns a server. It starts nothing.
func New(cfg Config) *Server {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 4 << 20
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Minute
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), metrics: newMetrics(cfg.Runner, cfg.Model), started: time.Now()}
	for _, k := range cfg.Keys {
		s.keys = append(s.keys, sha256.Sum256([]byte(k)))
	}
	s.longest = 64 // a control token has no text
	for id := range int32(cfg.Runner.Model().Vocab) {
		s.longest = max(s.longest, len(s.piece(id)))
	}
	open := func(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }
	keyed := func(pattern string, h func(http.ResponseWriter, *http.Request, []byte) error) {
		s.mux.Handle(pattern, s.keyed(h))
	}
	open("GET /health", http.HandlerFunc(s.health))
	open("GET /metrics", s.metrics.handler)
	open("GET /{$}", http.HandlerFunc(s.page))
	open("GET /inspector.js", http.HandlerFunc(s.page))
	open("GET /inspector.css", http.HandlerFunc(s.page))
	keyed("POST /v1/chat/completions", s.chat)
	keyed("POST /v1/completions", s.completions)
	keyed("GET /v1/models", s.models)
	keyed("GET /v1/models/{id...}", s.models)
	keyed("GET /v1/kvist/conversations", s.conversations)
	keyed("GET /v1/kvist/conversations/{id}", s.conversation)
	keyed("DELETE /v1/kvist/conversations/{id}", s.forget)
	keyed("POST /v1/kvist/conversations/{id}/fade", s.fade)
	keyed("POST /v1/kvist/conversations/{id}/pin", s.pin)
	keyed("POST /v1/kvist/conversations/{id}/park", s.park)
	return s
}

// Drain has the server refuse new answers, and say so in /health. Answers under way go on.
func (s *Server) Drain() { s.draining.Store(true) }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // answers set later ones
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	if s.cfg.Loopback && len(s.keys) == 0 && !loopbackHost(r.Host) {
		s.refuse(w, r, &apiError{http.StatusForbidden, "permission_error", "host", "host",
			fmt.Sprintf("host %q is not this machine; a server with API keys takes every name", r.Host)})
		return
	}
	handler, pattern := s.mux.Handler(r)
	if pattern == "" {
		probe := &status{ResponseWriter: w, header: http.Header{}}
		handler.ServeHTTP(probe, r) // tells what is wrong: the path or the method
		if allow := probe.header.Get("Allow"); allow != "" {
			h.Set("Allow", allow)
			s.refuse(w, r, &apiError{http.StatusMethodNotAllowed, invalid, "", "method",
				fmt.Sprintf("%s is not a method of %s", r.Method, r.URL.Path)})
			return
		}
		s.refuse(w, r, &apiError{http.StatusNotFound, invalid, "", "not_found",
			fmt.Sprintf("there is no %s here", r.URL.Path)})
		return
	}
	s.mux.ServeHTTP(w, r)
}

// status swallows a response but for its headers.
type status struct {
	http.ResponseWriter
	header http.Header
}

func (s *status) Header() http.Header         { return s.header }
func (s *status) Write(b []byte) (int, error) { return len(b), nil }
func (s *status) WriteHeader(int)             {}

// loopbackHost reports whether the host of a request names this machine.
func loopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// keyed wraps a handler that needs a key. It gets the salt of the caller.
func (s *Server) keyed(f func(w http.ResponseWriter, r *http.Request, salt []byte) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		salt, ok := s.salt(r)
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			s.refuse(w, r, &apiError{http.StatusUnauthorized, invalid, "", "invalid_api_key",
				"an API key is needed: Authorization: Bearer KEY"})
			return
		}
		if r.Method == http.MethodPost {
			if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
				s.refuse(w, r, &apiError{http.StatusUnsupportedMediaType, invalid, "", "content_type",
					"want Content-Type: application/json"})
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBody)
		}
		if err := f(w, r, salt); err != nil {
			s.refuse(w, r, err)
		}
	})
}

// salt returns what keeps the conversations of a request apart from those of others. All keys are compared,
// whichever fits, so that the time tells nothing of them.
func (s *Server) salt(r *http.Request) (salt []byte, ok bool) {
	if len(s.keys) == 0 {
		return []byte("kvist serve"), true
	}
	key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(key)))
	fits := 0
	for i := range s.keys {
		fits |= subtle.ConstantTimeCompare(sum[:], s.keys[i][:])
	}
	if fits != 1 || !bearer {
		return nil, false
	}
	return append([]byte(keySalt), sum[:]...), true
}

// keySalt begins the salts of keys. A hash of the key follows, and what a request sets apart.
const keySalt = "kvist key "

// KeyOf names the key that a salt belongs to.
func KeyOf(salt []byte) string { return string(salt[:min(len(salt), len(keySalt)+sha256.Size)]) }

// health tells whether the server can answer.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	err := s.cfg.Runner.Health(ctx)
	switch {
	case s.draining.Load():
		s.refuse(w, r, &apiError{http.StatusServiceUnavailable, "server_error", "", "draining", "the server is ending"})
	case err != nil:
		s.refuse(w, r, &apiError{http.StatusServiceUnavailable, "server_error", "", "unhealthy", err.Error()})
	default:
		writeJSON(w, http.StatusOK, map[string]any{"status": "ok", "model": s.cfg.Model, "version": s.cfg.Version})
	}
}

// models lists the one model, or describes it.
func (s *Server) models(w http.ResponseWriter, r *http.Request, _ []byte) error {
	m := map[string]any{"id": s.cfg.Model, "object": "model", "created": s.started.Unix(), "owned_by": "kvist",
		"max_model_len": s.cfg.Runner.Context()}
	id := r.PathValue("id")
	switch {
	case id == "":
		writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": []any{m}})
	case id == s.cfg.Model:
		writeJSON(w, http.StatusOK, m)
	default:
		return noModel(id)
	}
	return nil
}

// readJSON reads the body of a request, one JSON object.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	err := d.Decode(into)
	if err == nil && d.More() {
		err = errors.New("more than one object")
	}
	if err == nil {
		// The limit on reading was for the request; while the answer comes, the connection is only watched.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	var long *http.MaxBytesError
	var typed *json.UnmarshalTypeError
	var api *apiError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &api):
		return api
	case errors.As(err, &long):
		return &apiError{http.StatusRequestEntityTooLarge, invalid, "", "too_large",
			fmt.Sprintf("the request is longer than %d bytes", long.Limit)}
	case errors.As(err, &typed):
		field := strings.TrimPrefix(typed.Field, "common.")
		return &apiError{http.StatusBadRequest, invalid, field, "invalid_type",
			fmt.Sprintf("%s is a JSON %s, want %s", field, typed.Value, typed.Type)}
	}
	return &apiError{http.StatusBadRequest, invalid, "", "invalid_json", "the body is not one JSON object: " + err.Error()}
}

func writeJSON(w http.ResponseWriter, code int, x any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(x) // an error is that of a client that has gone
}
