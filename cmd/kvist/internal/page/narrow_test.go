// SPDX-License-Identifier: Apache-2.0

package page_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kvist-project/kvist/engine/report"
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

// outside ends a page that shows others in frames as wide as screens: it lists what of them lies
// outside. A section that scrolls (.wide) may hold more than it shows.
const outside = `<pre id="out">not loaded</pre><script>
onload = () => {
  const out = [];
  for (const f of document.querySelectorAll('iframe')) {
    const d = f.contentDocument, width = f.clientWidth, at = f.getAttribute('src') + ' at ' + width + ': ';
    for (const e of d.body.querySelectorAll('*')) {
      const r = e.getBoundingClientRect();
      if (r.width && (r.left < -0.5 || r.right > width + 0.5) && !e.parentElement.closest('.wide'))
        out.push(at + e.tagName + '.' + e.getAttribute('class') + '#' + e.id + ' ' + Math.round(r.left) + ' to ' + Math.round(r.right));
    }
    if (d.scrollingElement.scrollWidth > width) out.push(at + 'the page is ' + d.scrollingElement.scrollWidth + ' wide');
    out.push('drawn ' + d.querySelectorAll('#map canvas, #legend canvas').length);
  }
  document.getElementById('out').textContent = out.join('\n');
};
</script>`

var listed = regexp.MustCompile(`(?s)<pre id="out">(.*?)</pre>`)

// TestWrite_FitsTheScreen draws pages on a wide and on a narrow screen: nothing lies outside, legends
// included, however long the names are.
func TestWrite_FitsTheScreen(t *testing.T) {
	bin := browser(t)
	long := sample()
	long.File, long.Model = strings.Repeat("file", 80)+".kvist", strings.Repeat("m", 300)
	long.Config = "importance=" + strings.Repeat("x", 400)
	long.Layers = append(long.Layers, report.Layer{Number: 1, Name: strings.Repeat("n", 200), Tokens: 3})
	long.Map.Kinds = append(long.Map.Kinds, report.Kind{Level: "DROPPED"})
	long.Map.Rows = append(long.Map.Rows, report.MapRow{Layer: 1, Kind: []int{1, 1, 1},
		KBits: []float32{0, 0, 0}, VBits: []float32{0, 0, 0}})
	long.Bytes, long.Values = 1<<53, 1<<53
	long.Codings[0].Values, long.Codings[0].Coding = 1<<53, "lm4+len+s8"
	e := long.Errors
	e.VError, e.FutureError, e.Layers[0].VError, e.Layers[0].FutureError = e.KError, e.KError, e.KError, e.KError
	e.Layers = append(e.Layers, e.Layers[0])
	e.Layers[1].Name = long.Layers[1].Name
	rows := sample()
	rows.Kind = "rows"
	dir, want := t.TempDir(), []string(nil)
	var frames strings.Builder
	frames.WriteString("<!doctype html><body>")
	for i, r := range []*report.Report{sample(), long, rows} {
		name := fmt.Sprintf("page%d.html", i)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(write(t, r)), 0o600))
		for _, width := range []int{390, 1400} {
			fmt.Fprintf(&frames, `<iframe src="%s" style="width:%dpx;height:4000px;border:0"></iframe>`, name, width)
			want = append(want, "drawn 2")
		}
	}
	frames.WriteString(outside)
	frame := filepath.Join(dir, "frame.html")
	require.NoError(t, os.WriteFile(frame, []byte(frames.String()), 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "--headless", "--no-sandbox", "--disable-gpu",
		"--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
		"--window-size=1600,1000", "--user-data-dir="+filepath.Join(dir, "profile"), "--dump-dom",
		"file://"+frame).Output()
	require.NoError(t, err)
	m := listed.FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	require.Equal(t, strings.Join(want, "\n"), string(m[1]))
}
