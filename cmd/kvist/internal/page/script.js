'use strict';
(() => {
  const D = JSON.parse(document.getElementById('data').textContent);
  const el = (tag, text) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; return e; };
  const num = n => String(n).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const title = name => name.replace(/^tensor "(.*)"$/, '$1') || 'rows'; // an .npy has no name
  const unpack = s => {
    const b = atob(s), n = b.length / 2, out = new Uint16Array(n);
    for (let i = 0; i < n; i++) out[i] = b.charCodeAt(2 * i) | b.charCodeAt(2 * i + 1) << 8;
    return out;
  };
  const rows = D.rows.map(r => ({ layer: r.layer, head: r.head, kind: unpack(r.kind), k: unpack(r.k), v: unpack(r.v),
    why: r.weight ? ['weight', 'damage', 'coarser', 'finer'].map(x => unpack(r[x])) : null }));
  const unit = D.cache ? 'token' : 'row';

  // The scale: lightness falls steadily from 1 to 32 bits, hue turns from straw over green to
  // blue, so that it reads the same without colour vision. A step of the scale is a doubling above
  // 4 bits and half a doubling or so below.
  const stops = [[0, '#fdf8e0'], [1, '#f4efbf'], [2, '#cbe7ae'], [3, '#86cdb1'], [4, '#3ba4bb'], [8, '#22559c'], [16, '#1c2766'], [32, '#0b1033']];
  const rgb = h => [1, 3, 5].map(i => parseInt(h.slice(i, i + 2), 16));
  const table = stops.map(([b, h]) => [b, rgb(h)]);
  const place = bits => { // bits to steps of the scale
    for (let i = 1; i < table.length; i++) if (bits <= table[i][0]) return i - 1 + (bits - table[i - 1][0]) / (table[i][0] - table[i - 1][0]);
    return table.length - 1;
  };
  const colour = bits => {
    const p = place(bits), i = Math.min(Math.floor(p), table.length - 2), f = p - i, a = table[i][1], b = table[i + 1][1];
    return [0, 1, 2].map(c => Math.round(a[c] + (b[c] - a[c]) * f));
  };
  const gone = rgb('#b9b2ab');
  const lut = Array.from({ length: 3201 }, (_, i) => colour(i / 100));

  const bitsOf = {
    K: (r, c) => r.k[c], V: (r, c) => r.v[c],
    both: (r, c) => (r.k[c] * D.dims[0] + r.v[c] * D.dims[1]) / (D.dims[0] + D.dims[1]),
  };

  // Lines of the map: every head, one head of every layer, or the mean of its heads.
  let side = D.cache ? 'both' : 'K';
  const heads = [...new Set(rows.map(r => r.head))].sort((a, b) => a - b);
  const select = document.getElementById('rows');
  const option = (value, text) => { const o = el('option', text); o.value = value; select.append(o); };
  if (D.cache && heads.length > 1) {
    option('all', 'every head'); option('mean', 'mean over heads');
    heads.forEach(h => option(String(h), 'head ' + h));
    select.value = rows.length <= 160 ? 'all' : 'mean';
  } else {
    option('all', D.cache ? (heads[0] === -1 ? 'mean over heads' : 'every head') : 'every tensor');
    if (!D.cache) select.parentElement.style.display = 'none';
  }
  const lines = () => {
    const mode = select.value;
    if (mode === 'all') return rows.map(r => [r]);
    if (mode === 'mean') return D.layers.map((_, i) => rows.filter(r => r.layer === i));
    return rows.filter(r => r.head === Number(mode)).map(r => [r]);
  };

  const holder = document.getElementById('map'), tip = document.getElementById('tip');
  const canvas = el('canvas'); canvas.tabIndex = 0; canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', 'bits a value by layer and ' + unit);
  holder.append(canvas);
  let geo = null;

  function draw() {
    const list = lines(), get = bitsOf[side];
    const width = holder.clientWidth, dpr = Math.min(window.devicePixelRatio || 1, 2);
    const left = 92, right = 6, top = 22, bottom = 24, plot = width - left - right;
    const height = Math.max(2, Math.min(34, Math.floor(Math.max(150, Math.min(620, list.length * 26)) / list.length)));
    const perLayer = select.value === 'all' ? Math.max(1, rows.filter(r => r.layer === 0).length) : 1;
    const gap = perLayer > 1 && height >= 6 ? Math.min(8, Math.round(height / 3)) : 0;
    const at = list.map((_, i) => top + i * height + Math.floor(i / perLayer) * gap);
    const total = (at.length ? at[at.length - 1] + height : top) + bottom;
    canvas.width = Math.round(width * dpr); canvas.height = Math.round(total * dpr);
    canvas.style.height = total + 'px';
    const g = canvas.getContext('2d');
    g.scale(dpr, dpr);
    const most = Math.max(1, ...D.layers.map(l => l.tokens));
    const perPixel = most / (plot * dpr), pixels = Math.round(plot * dpr);
    list.forEach((group, i) => {
      const img = new ImageData(pixels, 1), tokens = D.layers[group[0].layer].tokens, cols = group[0].kind.length;
      for (let x = 0; x < pixels; x++) {
        let c0 = Math.floor(x * perPixel / D.per), c1 = Math.max(c0 + 1, Math.floor((x + 1) * perPixel / D.per));
        if (x * perPixel >= tokens || c0 >= cols) continue;
        c1 = Math.min(c1, cols);
        let sum = 0, n = 0;
        for (const r of group) for (let c = c0; c < c1; c++) { sum += get(r, c); n++; }
        const p = sum === 0 ? gone : lut[Math.min(3200, Math.round(sum / n))];
        img.data.set([p[0], p[1], p[2], 255], 4 * x);
      }
      const strip = el('canvas'); strip.width = pixels; strip.height = 1;
      strip.getContext('2d').putImageData(img, 0, 0);
      g.imageSmoothingEnabled = false;
      g.drawImage(strip, left, at[i], plot, height - (height > 8 ? 1 : 0));
    });
    axes(g, list, at, height, perLayer, left, plot, top, total - bottom, most);
    geo = { list, at, height, left, plot, most };
  }

  function axes(g, list, at, height, perLayer, left, plot, top, bottom, most) {
    g.font = '12px system-ui, sans-serif'; g.fillStyle = '#667472'; g.textBaseline = 'middle'; g.textAlign = 'right';
    const block = perLayer * height, every = Math.max(1, Math.ceil(14 / block));
    list.forEach((group, i) => {
      const l = D.layers[group[0].layer];
      if (perLayer > 1) {
        if (i % perLayer === 0 && (i / perLayer) % every === 0) label(g, 'layer ' + l.number, left - 30, at[i] + block / 2);
        if (height >= 12) { g.globalAlpha = .75; g.fillText('h' + group[0].head, left - 8, at[i] + height / 2); g.globalAlpha = 1; }
      } else if (i % every === 0) label(g, D.cache ? 'layer ' + l.number : title(l.name), left - 8, at[i] + height / 2);
    });
    // Ends of segments above, tokens below.
    g.strokeStyle = '#9aa5a1'; g.lineWidth = 1; g.textAlign = 'center';
    const x = t => left + t / most * plot;
    const step = D.segment * Math.max(1, Math.ceil(most / D.segment / 24));
    g.textBaseline = 'alphabetic';
    for (let t = 0, i = 0; t < most; t += step, i++) {
      const w = Math.min(step, most - t) / most * plot;
      g.beginPath(); g.moveTo(x(t) + .5, top - 3); g.lineTo(x(t) + .5, top - 8); g.lineTo(x(t) + w - 1.5, top - 8); g.lineTo(x(t) + w - 1.5, top - 3); g.stroke();
      if (w > 66) { g.fillText('segment ' + i * (step / D.segment), x(t) + w / 2, top - 12); }
    }
    let tick = 1;
    for (const m of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 1e8, 1e9]) { tick = m; if (most / m <= plot / 90) break; }
    g.strokeStyle = '#c9ccc5';
    for (let t = 0; t <= most; t += tick) {
      g.beginPath(); g.moveTo(x(t) + .5, bottom + 1); g.lineTo(x(t) + .5, bottom + 6); g.stroke();
      g.textAlign = t === 0 ? 'left' : x(t) > left + plot - 30 ? 'right' : 'center';
      g.fillText(t === 0 ? unit + ' ' + num(D.first) : num(t + D.first), x(t), bottom + 19);
    }
  }
  function label(g, text, x, y) {
    while (text.length > 4 && g.measureText(text).width > 84) text = text.slice(0, -2) + '…';
    g.fillText(text, x, y);
  }

  function describe(group, token) {
    const r = group[0], l = D.layers[r.layer], c = Math.min(Math.floor(token / D.per), r.kind.length - 1), out = [];
    const first = c * D.per, last = Math.min(first + D.per, l.tokens) - 1;
    const head = group.length > 1 ? ' · mean of ' + group.length + ' heads' : D.cache ? (r.head < 0 ? ' · mean over heads' : ' · head ' + r.head) : '';
    const line = (strong, rest) => { const d = el('div'); d.append(el('b', strong)); if (rest) { const s = el('span', rest); s.className = 'dim'; d.append(s); } out.push(d); };
    line(D.cache ? 'layer ' + l.number : title(l.name), head);
    line(unit + ' ' + num(first + D.first) + (last > first ? '–' + num(last + D.first) : ''), ' · segment ' + Math.floor(first / D.segment));
    const mean = f => group.reduce((s, x) => s + f(x), 0) / group.length / 100;
    const kind = D.kinds[r.kind[c]];
    const mostly = group.length > 1 || D.per > 1 || r.head < 0 ? 'mostly ' : '';
    if (kind.level !== 'FULL') line(kind.level, mostly ? ' ' + mostly : '');
    if (kind.level !== D.dropped) {
      line((D.cache ? 'K ' : '') + kind.k, ' · ' + mean(x => x.k[c]).toFixed(2) + ' bits a value');
      if (D.cache) line('V ' + kind.v, ' · ' + mean(x => x.v[c]).toFixed(2) + ' bits a value');
    }
    if (r.why) { // what the planner thought; prices are over the price of a byte
      const [weight, damage, coarser, finer] = r.why.map((_, i) => mean(x => x.why[i][c]));
      line('weight ' + weight.toPrecision(2), kind.level === D.dropped ? '' : ' · damage ' + (10 ** -damage).toExponential(1) + ' a ' + unit);
      const prices = [];
      if (coarser > 0) prices.push('coarser costs ' + coarser.toPrecision(2) + '×');
      if (finer > 0) prices.push('finer saves ' + finer.toPrecision(2) + '×');
      if (prices.length) line('', prices.join(', ') + ' the price of a byte');
    }
    return out;
  }
  function hover(e) {
    const b = canvas.getBoundingClientRect(), x = e.clientX - b.left, y = e.clientY - b.top;
    const i = geo ? geo.at.findIndex(t => y >= t && y < t + geo.height) : -1;
    const token = geo ? Math.floor((x - geo.left) / geo.plot * geo.most) : -1;
    if (i < 0 || token < 0 || token >= D.layers[geo.list[i][0].layer].tokens) { tip.hidden = true; return; }
    tip.replaceChildren(...describe(geo.list[i], token));
    tip.hidden = false;
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(e.clientX + 16, innerWidth - w - 8)) + 'px';
    tip.style.top = (e.clientY + 18 + h > innerHeight ? e.clientY - h - 12 : e.clientY + 18) + 'px';
  }
  canvas.addEventListener('mousemove', hover);
  canvas.addEventListener('mouseleave', () => { tip.hidden = true; });

  const sides = document.getElementById('side');
  if (D.cache) for (const [value, text] of [['K', 'K'], ['V', 'V'], ['both', 'both']]) {
    const b = el('button', text); b.type = 'button';
    b.setAttribute('aria-pressed', String(value === side));
    b.onclick = () => { side = value; [...sides.children].forEach(c => c.setAttribute('aria-pressed', String(c === b))); draw(); };
    sides.append(b);
  } else sides.style.display = 'none';
  select.onchange = draw;
  addEventListener('resize', () => { draw(); errors(); });

  function legend() {
    const box = document.getElementById('legend'), w = 340, scale = el('div'), bar = el('canvas'), ticks = el('div');
    const dropped = rows.some(r => r.kind.some(k => D.kinds[k].level === D.dropped));
    if (dropped) {
      const s = el('span'), i = el('i'); i.className = 'box'; i.style.background = 'rgb(' + gone.join() + ')';
      s.append(i, 'dropped'); box.append(s);
    }
    let most = 0;
    for (const r of rows) for (const x of [r.k, r.v]) for (const b of x) if (b > most) most = b;
    const end = most > 1650 ? 32 : 16, steps = place(end);
    bar.width = w; bar.height = 1; scale.className = 'scale'; // as wide as there is room
    const g = bar.getContext('2d');
    for (let x = 0; x < w; x++) {
      const p = x / (w - 1) * steps, i = Math.min(Math.floor(p), table.length - 2), f = p - i;
      g.fillStyle = 'rgb(' + [0, 1, 2].map(c => Math.round(table[i][1][c] * (1 - f) + table[i + 1][1][c] * f)).join() + ')';
      g.fillRect(x, 0, 1, 1);
    }
    ticks.className = 'ticks';
    for (const [b] of stops) if (b <= end) { const s = el('span', String(b)); s.style.left = 100 * place(b) / steps + '%'; ticks.append(s); }
    scale.append(bar, ticks);
    box.append(el('span', 'bits a value'), scale);
  }

  // Errors: a dot for each layer and measure on a logarithmic axis, joined where layers follow.
  function errors() {
    const box = document.getElementById('errors');
    if (!box || !D.errors) return;
    const NS = 'http://www.w3.org/2000/svg';
    const measures = [['k_error', D.cache ? 'K' : 'rows', '#1d5f91', 'circle'], ['v_error', 'V', '#d07c1f', 'square'], ['future_error', 'future attention', '#1b6b62', 'diamond']]
      .filter(m => D.errors.layers.some(l => l[m[0]] > 0));
    const all = D.errors.layers.flatMap(l => measures.map(m => l[m[0]])).filter(x => x > 0);
    if (D.errors.layers.length < 2) { box.remove(); return; } // the numbers say it all
    if (!all.length) { box.textContent = 'No error at all: everything was kept exactly.'; return; }
    // Beside the chart there is room for the key, or above it.
    const W = Math.max(240, box.clientWidth), wide = W > 640, n = D.errors.layers.length;
    const H = wide ? 270 : 250, left = 62, right = wide ? 150 : 8, top = wide ? 12 : 36, bottom = 34;
    let lo = Math.log10(Math.min(...all)), hi = Math.log10(Math.max(...all));
    const slack = Math.max(.12, (hi - lo) * .08); lo -= slack; hi += slack;
    const X = i => left + (n === 1 ? .5 : (i + .5) / n) * (W - left - right), Y = v => top + (hi - Math.log10(v)) / (hi - lo) * (H - top - bottom);
    const svg = document.createElementNS(NS, 'svg'); svg.setAttribute('viewBox', `0 0 ${W} ${H}`); svg.setAttribute('height', H);
    const add = (tag, attrs, text, to) => { const e = document.createElementNS(NS, tag); for (const k in attrs) e.setAttribute(k, attrs[k]); if (text !== undefined) e.textContent = text; (to || svg).append(e); return e; };
    const pct = v => { const p = 100 * v; return (p >= 1e-3 ? String(+p.toPrecision(3)) : p.toExponential(1)) + ' %'; };
    const fine = hi - lo < 2.6 ? [1, 2, 5] : [1];
    for (let d = Math.floor(lo); d <= hi; d++) for (const m of fine) {
      const v = m * 10 ** d;
      if (Math.log10(v) < lo || Math.log10(v) > hi) continue;
      add('line', { x1: left, x2: W - right, y1: Y(v), y2: Y(v), class: 'grid' });
      add('text', { x: left - 10, y: Y(v) + 4, 'text-anchor': 'end' }, pct(v));
    }
    const plot = W - left - right, named = plot / n >= (D.cache ? 60 : 150);
    const every = Math.max(1, Math.ceil(n * (D.cache ? 34 : 150) / plot));
    D.layers.forEach((l, i) => { if (i % every === 0) add('text', { x: X(i), y: H - 12, 'text-anchor': 'middle' }, D.cache ? (named ? 'layer ' : '') + l.number : title(l.name).slice(0, 22)); });
    const shape = (kind, x, y, r, fill, to) => kind === 'circle' ? add('circle', { cx: x, cy: y, r, fill }, undefined, to)
      : kind === 'square' ? add('rect', { x: x - r * .9, y: y - r * .9, width: 1.8 * r, height: 1.8 * r, fill }, undefined, to)
        : add('path', { d: `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z`, fill }, undefined, to);
    measures.forEach(([key, name, fill, kind], m) => {
      const pts = D.errors.layers.map((l, i) => l[key] > 0 ? [X(i), Y(l[key]), l] : null);
      const path = pts.filter(p => p).map(p => `${p[0]},${p[1]}`).join(' ');
      add('polyline', { points: path, fill: 'none', stroke: fill, 'stroke-width': 1.5, 'stroke-opacity': .35 });
      pts.forEach(p => { if (p) add('title', {}, `${p[2].name}, ${name}: ${pct(p[2][key])}`, shape(kind, p[0], p[1], n > 60 ? 3 : 5, fill)); });
      const g = add('g', { class: 'key' });
      const x = wide ? W - right + 26 : left + 5 + 56 * m, y = wide ? top + 14 + 24 * m : 12;
      shape(kind, x, y, 5, fill, g);
      add('text', { x: x + 14, y: y + 4 }, name, g);
    });
    box.replaceChildren(svg);
  }

  draw(); legend(); errors();
})();
