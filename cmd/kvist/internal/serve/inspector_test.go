// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/cmd/kvist/internal/serve"
	"github.com/kvist-project/kvist/engine/runner"
)

// browser finds a headless browser, or skips.
func browser(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser takes seconds: not with -short")
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no chromium to draw the page with")
	return ""
}

// frames is a page that shows the inspector on a wide and on a narrow screen and lists what of it lies outside, and
// what of it has no name that a screen reader could say.
const frames = `<!doctype html><iframe src="/" width="1400" height="900"></iframe><iframe src="/" width="390" height="844"></iframe>
<pre id="out">not loaded</pre><script>
const look = () => {
  const out = [];
  for (const f of document.querySelectorAll('iframe')) {
    const d = f.contentDocument, width = f.clientWidth, at = width + ': ';
    for (const e of d.body.querySelectorAll('*')) {
      const r = e.getBoundingClientRect();
      if (r.width && (r.left < -0.5 || r.right > width + 0.5) && !e.closest('.wide') && !e.classList.contains('hidden'))
        out.push(at + e.tagName + '#' + e.id + ' ' + Math.round(r.left) + ' to ' + Math.round(r.right));
    }
    if (d.scrollingElement.scrollWidth > width) out.push(at + 'the page is ' + d.scrollingElement.scrollWidth + ' wide');
    for (const e of d.querySelectorAll('button, input, textarea, [role], section, ul'))
      if (!e.hidden && !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)))
        out.push(at + e.tagName + '#' + e.id + ' has no name');
    const t = d.getElementById('tokens');
    t.focus();
    t.dispatchEvent(new KeyboardEvent('keydown', { key: 'End' }));
    out.push('tokens ' + t.children.length + ', faded ' + d.querySelectorAll('#tokens .k4, #tokens .k5, #tokens .k6, #tokens .k7, #tokens .k3').length +
      ', lines ' + d.querySelectorAll('#chart path').length + ', rows ' + d.querySelectorAll('#faded tbody tr').length +
      ', detail ' + /^token \d+,/.test(d.getElementById('detail').textContent) +
      ', problem ' + !d.getElementById('problem').hidden);
  }
  document.getElementById('out').textContent = out.join('\n');
};
onload = () => setTimeout(look, 4000);
</script>`

var listed = regexp.MustCompile(`(?s)<pre id="out">(.*?)</pre>`)

// TestInspector_InABrowser draws the page on a wide and on a narrow screen: nothing lies outside, everything has a
// name, the keyboard reaches the tokens, and the console stays empty.
func TestInspector_InABrowser(t *testing.T) {
	bin := browser(t)
	s := start(t, serve.Config{}, runner.Options{})
	words := strings.Repeat("averyverylongwordwithoutanyspace and a few others ", 24)
	code, out := s.do("POST", "/v1/chat/completions", fmt.Sprintf(said, words, 40, ""))
	require.Equal(t, 200, code, out)
	code, _ = s.do("POST", "/v1/kvist/conversations/"+at(out, "kvist", "conversation").(string)+"/fade", `{"share":0.8}`)
	require.Equal(t, 200, code)
	// The page forbids frames; here they are how two screens are looked at.
	framed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/frames" {
			_, _ = w.Write([]byte(frames))
			return
		}
		s.h.ServeHTTP(&unframed{ResponseWriter: w}, r)
	}))
	defer framed.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
		"--user-data-dir="+t.TempDir(), "--window-size=1500,1900", "--virtual-time-budget=9000", "--dump-dom", framed.URL+"/frames")
	var errs strings.Builder
	cmd.Stderr = &errs
	dom, err := cmd.Output()
	require.NoError(t, err, errs.String())
	m := listed.FindStringSubmatch(string(dom))
	require.NotNil(t, m)
	tokens := len([]rune(words)) + 40
	for i, line := range strings.Split(m[1], "\n") {
		var n, faded, lines, rows int
		var detail, problem bool
		_, err := fmt.Sscanf(line, "tokens %d, faded %d, lines %d, rows %d, detail %t, problem %t", &n, &faded, &lines, &rows,
			&detail, &problem)
		require.NoError(t, err, m[1])
		require.Greater(t, n, tokens, i)
		require.Greater(t, faded, 300)
		require.Equal(t, 2, lines)
		require.Positive(t, rows)
		require.True(t, detail)
		require.False(t, problem)
	}
	require.Equal(t, 2, strings.Count(m[1], "tokens "))
	require.NotContains(t, errs.String(), "CONSOLE", "the console has something to say")
}

// unframed lets a page be shown in frames of its own server.
type unframed struct {
	http.ResponseWriter
	begun bool
}

func (u *unframed) WriteHeader(code int) {
	u.begun = true
	h := u.Header()
	h.Set("Content-Security-Policy", strings.Replace(h.Get("Content-Security-Policy"), "frame-ancestors 'none'", "", 1))
	u.ResponseWriter.WriteHeader(code)
}

func (u *unframed) Write(b []byte) (int, error) {
	if !u.begun {
		u.WriteHeader(http.StatusOK)
	}
	return u.ResponseWriter.Write(b)
}
