// SPDX-License-Identifier: Apache-2.0

package serve

import (
	_ "embed"
	"math"
	"net/http"
	"strings"

	"github.com/kvist-project/kvist/engine/runner"
)

var (
	//go:embed inspector.html
	pageHTML []byte
	//go:embed inspector.js
	pageJS []byte
	//go:embed inspector.css
	pageCSS []byte
)

// page serves the inspector. It holds no data: its script asks for them, with the key that the reader enters.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	body, kind := pageHTML, "text/html; charset=utf-8"
	switch r.URL.Path {
	case "/inspector.js":
		body, kind = pageJS, "text/javascript; charset=utf-8"
	case "/inspector.css":
		body, kind = pageCSS, "text/css; charset=utf-8"
	}
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write(body) // an error is that of a client that has gone
}

// summary is a conversation in a list.
func (s *Server) summary(c runner.Summary) map[string]any {
	var b strings.Builder
	for _, id := range c.First {
		b.Write(s.piece(id))
	}
	return map[string]any{"id": c.ID, "tokens": c.Tokens, "bytes": c.Bytes, "exact_bytes": c.Exact, "busy": c.Busy,
		"pinned": c.Pinned, "parked": c.Parked, "used": c.Used.Unix(), "begins": valid([]byte(b.String()))}
}

// conversations lists those of the caller.
func (s *Server) conversations(w http.ResponseWriter, r *http.Request, salt []byte) error {
	list, err := s.cfg.Runner.Conversations(r.Context(), salt)
	if err != nil {
		return err
	}
	data := []any{}
	for _, c := range list {
		data = append(data, s.summary(c))
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "model": s.cfg.Model, "data": data})
	return nil
}

// conversation describes one, token by token.
func (s *Server) conversation(w http.ResponseWriter, r *http.Request, salt []byte) error {
	d, err := s.cfg.Runner.Describe(r.Context(), salt, r.PathValue("id"))
	if err != nil {
		return err
	}
	n := len(d.All)
	text, bits, weight := make([]string, n), make([]float64, n), make([]float64, n)
	at, before := make([]int32, n), make([]float64, n)
	for i, id := range d.All {
		text[i] = valid(s.piece(id))
		bits[i], weight[i] = round(d.Kept[i].Bits), round(d.Kept[i].Weight)
		at[i], before[i] = d.Fading[i].At, round(d.Fading[i].Before)
	}
	var moments []any
	for _, m := range d.Moments {
		moments = append(moments, []int64{int64(m.Tokens), m.Bytes, m.Exact})
	}
	out := s.summary(d.Summary)
	out["held_bytes"], out["budget_bytes"] = d.Held, d.Budget
	out["text"], out["bits"], out["weight"], out["faded_at"], out["bits_before"] = text, bits, weight, at, before
	out["moments"] = moments
	writeJSON(w, http.StatusOK, out)
	return nil
}

// round keeps three digits behind the point, or three significant ones.
func round(x float32) float64 {
	v := float64(x)
	if v == 0 {
		return 0
	}
	p := math.Pow(10, max(3, 2-math.Floor(math.Log10(math.Abs(v)))))
	return math.Round(v*p) / p
}

func (s *Server) forget(w http.ResponseWriter, r *http.Request, salt []byte) error {
	return s.done(w, s.cfg.Runner.Forget(r.Context(), salt, r.PathValue("id")))
}

func (s *Server) park(w http.ResponseWriter, r *http.Request, salt []byte) error {
	return s.done(w, s.cfg.Runner.Park(r.Context(), salt, r.PathValue("id")))
}

func (s *Server) fade(w http.ResponseWriter, r *http.Request, salt []byte) error {
	var in struct {
		Share *float64 `json:"share"`
	}
	if err := s.readJSON(w, r, &in); err != nil {
		return err
	}
	if in.Share == nil {
		return badValue("share", "share: none; want 0 to 1")
	}
	return s.done(w, s.cfg.Runner.Fade(r.Context(), salt, r.PathValue("id"), *in.Share))
}

func (s *Server) pin(w http.ResponseWriter, r *http.Request, salt []byte) error {
	var in struct {
		On *bool `json:"on"`
	}
	if err := s.readJSON(w, r, &in); err != nil {
		return err
	}
	if in.On == nil {
		return badValue("on", "on: none; want true or false")
	}
	return s.done(w, s.cfg.Runner.Pin(r.Context(), salt, r.PathValue("id"), *in.On))
}

func (s *Server) done(w http.ResponseWriter, err error) error {
	if err == nil {
		writeJSON(w, http.StatusOK, map[string]any{"ok": true})
	}
	return err
}
