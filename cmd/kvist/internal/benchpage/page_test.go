// SPDX-License-Identifier: Apache-2.0

package benchpage

import (
	"bytes"
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

	"github.com/kvist-project/kvist/bench/perf"
)

// sample is a record of a shape at two contexts, with names that are not ours among them.
func sample() *perf.Record {
	r := &perf.Record{Machine: perf.Machine{Processor: "CPU <b>", Cores: 2, Memory: 24 << 30, OS: "linux", Arch: "amd64"},
		Backend: perf.BackendInfo{Name: "cpu", ISA: "avx2", Memory: 24 << 30}, Threads: 2, Others: []string{"cuda: none"},
		Noise: perf.Noise{Spread: 0.2}, Command: "kvist bench --filter <x>"}
	add := func(name string, ns, bytes float64) {
		r.Results = append(r.Results, perf.Result{Name: name, Unit: "row pair", NS: perf.Spread{Median: ns, Low: 0.9 * ns, High: 1.1 * ns},
			Bytes: bytes, Plain: 512, Threads: 2, Relative: []perf.Spread{{Median: 1, Low: 1, High: 1}}})
	}
	s := perf.Shape{HeadDim: 128, GQA: 4, KVHeads: 8}
	for _, n := range []int{1024, 8192} {
		add(perf.AttendName(s, perf.F16, n, 2), 50, 512)
		add(perf.AttendName(s, perf.K3, n, 2), 10, 96)
	}
	add(perf.ReadName(2), 0.05, 1)
	add("serve/op=step/budget=25%/seqs=8/threads=2", 2e6, 0)
	add("encode/head_dim=128/coding=<i>/threads=2", 2, 1)
	add("attend/head_dim=x/context=y", 1, 1)
	return r
}

func TestWrite(t *testing.T) {
	var w bytes.Buffer
	old := sample()
	now := sample()
	now.Results[0].Relative = []perf.Spread{{Median: 1.5, Low: 1.5, High: 1.5}}
	c, err := perf.Compare(old, now)
	require.NoError(t, err)
	require.NoError(t, Write(&w, now, c))
	page := w.String()
	for _, want := range []string{"5.0× as fast", "17.2 → 3.22 GB", "24 → 128", "20.0 GB/s", "Llama-3.1-8B, Qwen3-8B", "0.20× f16",
		"25% of the memory for f16 · 8 conversations", "the machine is noisy", "Not measured: cuda: none", "<svg", "slower",
		"CPU &lt;b&gt;", "&lt;i&gt;"} {
		require.Contains(t, page, want)
	}
	require.NotContains(t, page, "<i>")
	for _, outside := range []string{"http://", "https://", "<script", "url("} {
		require.NotContains(t, page, outside, "the page needs nothing else")
	}
	require.Equal(t, 3, strings.Count(page, `class="f16" style`), "a bar of time, and one of memory for each of two models")
	w.Reset()
	require.NoError(t, Write(&w, &perf.Record{}, nil), "a record without results is a page, too")
	require.NotContains(t, w.String(), "NaN")
}

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

// outside ends a page that shows another in frames as wide as screens: it lists what lies outside of them, and how much
// was drawn. A section that scrolls (.wide) may hold more than it shows.
const outside = `<pre id="out">not loaded</pre><script>
onload = () => {
  const out = [];
  for (const f of document.querySelectorAll('iframe')) {
    const d = f.contentDocument, width = f.clientWidth;
    d.querySelectorAll('details').forEach(e => e.open = true);
    for (const e of d.body.querySelectorAll('*')) {
      const r = e.getBoundingClientRect();
      if (r.width && (r.left < -0.5 || r.right > width + 0.5) && !e.parentElement.closest('.wide'))
        out.push(width + ': ' + e.tagName + '.' + e.getAttribute('class') + ' ' + Math.round(r.left) + ' to ' + Math.round(r.right));
    }
    out.push('drawn ' + d.querySelectorAll('.track i').length + ' ' + d.querySelectorAll('.plot svg').length);
  }
  document.getElementById('out').textContent = out.join('\n');
};
</script>`

var listed = regexp.MustCompile(`(?s)<pre id="out">(.*?)</pre>`)

// The page fits a wide and a narrow screen.
func TestWrite_FitsTheScreen(t *testing.T) {
	bin, dir := browser(t), t.TempDir()
	r := sample()
	r.Command = strings.Repeat("kvist", 60)
	r.Machine.Processor = strings.Repeat("Processor", 40)
	var page bytes.Buffer
	require.NoError(t, Write(&page, r, nil))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "page.html"), page.Bytes(), 0o600))
	frames := "<!doctype html><body>"
	for _, width := range []int{390, 1400} {
		frames += fmt.Sprintf(`<iframe src="page.html" style="width:%dpx;height:4000px;border:0"></iframe>`, width)
	}
	frame := filepath.Join(dir, "frame.html")
	require.NoError(t, os.WriteFile(frame, []byte(frames+outside), 0o600))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--allow-file-access-from-files",
		"--window-size=1600,1000", "--user-data-dir="+filepath.Join(dir, "profile"), "--dump-dom", "file://"+frame).Output()
	require.NoError(t, err)
	m := listed.FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	require.Equal(t, "drawn 6 1\ndrawn 6 1", string(m[1]))
}

func TestTicks(t *testing.T) {
	require.Equal(t, []float64{10, 20, 50, 100}, ticksOf(15, 80))
	require.Equal(t, []float64{20, 50}, ticksOf(20, 50))
	require.Equal(t, []float64{5, 10}, ticksOf(5, 5))
	require.InDeltaSlice(t, []float64{0.5, 1, 2}, ticksOf(0.6, 1.1), 1e-9)
	require.Equal(t, "2 us", tickText(2000))
	require.Equal(t, "0.5 ns", tickText(0.5))
}
