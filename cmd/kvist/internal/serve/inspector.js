// SPDX-License-Identifier: Apache-2.0
'use strict';

const $ = (id) => document.getElementById(id);
const kinds = [[12, 'exact'], [6, '8 bits'], [3.4, '4 bits'], [2.5, '3 bits'], [1.6, '2 bits'], [0.8, '1 bit'], [0.01, 'less'], [0, 'gone']];
const kindOf = (bits) => kinds.findIndex(([from]) => bits >= from);
const state = { key: sessionStorage.getItem('kvist-key') || '', current: '', data: null, at: -1, messages: [], lost: false, abort: null };

function element(name, text, attributes = {}) {
  const e = document.createElement(name);
  if (text !== undefined) e.textContent = text;
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  return e;
}

function bytes(n) {
  for (const unit of ['B', 'kB', 'MB', 'GB']) {
    if (n < 10000 || unit === 'GB') return `${unit === 'B' || n >= 100 ? Math.round(n).toLocaleString('en') : n.toPrecision(3)} ${unit}`;
    n /= 1000;
  }
}

function problem(text) {
  $('problem').hidden = !text;
  if (text) $('problem').textContent = text;
}

async function call(path, options = {}) {
  const headers = { ...(options.body ? { 'Content-Type': 'application/json' } : {}) };
  if (state.key) headers.Authorization = 'Bearer ' + state.key;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    $('login').hidden = false;
    throw new Error('');
  }
  $('login').hidden = true;
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new Error(body && body.error ? body.error.message : `the server said ${response.status}`);
  }
  return response;
}

const get = async (path) => (await call(path)).json();

// What is drawn: the list, and one conversation.

async function refresh() {
  try {
    const list = await get('v1/kvist/conversations');
    $('model').textContent = list.model;
    drawList(list.data);
    const here = list.data.filter((c) => !c.parked); // looking at a parked one would bring it back
    if (!here.some((c) => c.id === state.current)) state.current = here.length ? here[0].id : '';
    if (state.current) draw(await get('v1/kvist/conversations/' + state.current));
    $('one').hidden = !state.current;
    if (state.lost) problem('');
    state.lost = false;
  } catch (e) {
    state.lost = true;
    problem(e.message);
  }
}

let listed = '';
function drawList(list) {
  const text = JSON.stringify([list, state.current]);
  if (text === listed) return;
  listed = text;
  $('none').hidden = list.length > 0;
  $('list').replaceChildren(...list.map((c) => {
    const b = element('button', undefined, { type: 'button', 'aria-current': c.id === state.current });
    b.append(element('span', c.begins.replace(/(<\|[^|]*\|>|<[a-z_]+>)(system|user|assistant|model)?/g, ' ').trim() || '(nothing)'),
      element('span', `${c.tokens} tokens, ${bytes(c.bytes)}${c.busy ? ', answering' : ''}${c.pinned ? ', pinned' : ''}${c.parked ? ', parked' : ''}`, { class: 'small' }));
    b.addEventListener('click', async () => {
      state.current = c.id;
      state.at = -1;
      if (c.parked) await get('v1/kvist/conversations/' + c.id).catch((e) => problem(e.message));
      refresh();
    });
    const item = element('li');
    item.append(b);
    return item;
  }));
}

function draw(d) {
  const before = state.data;
  state.data = d;
  const ratio = d.exact_bytes / Math.max(d.bytes, 1);
  $('summary').textContent = `${d.tokens.toLocaleString('en')} tokens; the exact cache takes ${ratio.toFixed(1)} times the bytes.`;
  drawSizes(d);
  $('pin').setAttribute('aria-pressed', d.pinned);
  for (const id of ['fade', 'pin', 'forget']) $(id).disabled = d.busy;
  drawTokens(d, before);
  drawChart(d);
  drawFaded(d);
}

function drawSizes(d) {
  const most = Math.max(d.exact_bytes, d.bytes, 1);
  const row = (name, value, whole, kind) => {
    const bar = element('dd', undefined, { class: 'bar' });
    const fill = element('i', undefined, kind ? { class: kind } : {});
    fill.style.width = `${Math.min(100, 100 * value / whole)}%`;
    bar.append(fill);
    return [element('dt', name), bar, element('dd', bytes(value), { class: 'number' })];
  };
  $('sizes').replaceChildren(...row('these rows', d.bytes, most), ...row('in f16', d.exact_bytes, most, 'exact'),
    ...row(`cache, of ${bytes(d.budget_bytes)}`, d.held_bytes, d.budget_bytes));
}

function drawTokens(d, before) {
  const counts = kinds.map(() => 0);
  for (const b of d.bits) counts[kindOf(b)]++;
  $('legend').replaceChildren(...kinds.map(([, name], k) => {
    const item = element('li');
    item.append(element('i', undefined, { class: 'k' + k }), `${name}: ${counts[k].toLocaleString('en')}`);
    return item;
  }));
  const box = $('tokens');
  const same = before && before.id === d.id && box.children.length <= d.text.length &&
    before.text.slice(0, box.children.length).every((t, i) => t === d.text[i]);
  const end = box.scrollTop + box.clientHeight >= box.scrollHeight - 40;
  if (!same) box.replaceChildren();
  for (let i = 0; i < d.text.length; i++) {
    let e = box.children[i];
    if (!e) {
      e = element('span', d.text[i], { role: 'option', id: 't' + i, 'aria-selected': 'false' });
      box.append(e);
    }
    const kind = kindOf(d.bits[i]);
    if (e.className !== 'k' + kind) {
      e.className = 'k' + kind;
      e.setAttribute('aria-label', `${d.text[i].trim() || 'space'}, ${kinds[kind][1]}`);
    }
  }
  if (end && same) box.scrollTop = box.scrollHeight;
  if (state.at >= 0) select(Math.min(state.at, d.text.length - 1), false);
}

function select(i, scroll = true) {
  const d = state.data;
  if (!d || i < 0 || i >= d.text.length) return;
  const old = $('t' + state.at);
  if (old) old.setAttribute('aria-selected', 'false');
  state.at = i;
  const e = $('t' + i);
  e.setAttribute('aria-selected', 'true');
  $('tokens').setAttribute('aria-activedescendant', e.id);
  if (scroll) e.scrollIntoView({ block: 'nearest' });
  let text = `token ${i}, ${JSON.stringify(d.text[i])}: ${d.bits[i].toFixed(2)} bits of a value, ${kinds[kindOf(d.bits[i])][1]}; ` +
    (d.weight[i] ? `weight ${d.weight[i].toPrecision(3)}` : 'not weighed yet');
  if (d.faded_at[i]) text += `; faded from ${d.bits_before[i].toFixed(2)} bits at token ${d.faded_at[i]}`;
  if ($('detail').textContent !== text) $('detail').textContent = text;
}

function svg(name, attributes, text) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

let charted = '';
function drawChart(d) {
  const points = [[0, 0, 0], ...(d.moments || [])];
  const width = Math.max(280, $('chart').clientWidth), height = 200, left = 64, bottom = 28, top = 10, right = 12;
  const key = JSON.stringify([points, width]);
  if (key === charted) return;
  charted = key;
  const mostX = Math.max(...points.map((p) => p[0]), 1), mostY = Math.max(...points.map((p) => Math.max(p[1], p[2])), 1);
  const x = (n) => left + (width - left - right) * n / mostX, y = (n) => height - bottom - (height - bottom - top) * n / mostY;
  const line = (k) => points.map((p, i) => `${i ? 'L' : 'M'}${x(p[0]).toFixed(1)} ${y(p[k]).toFixed(1)}`).join('');
  const last = points[points.length - 1];
  const s = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': `At ${last[0]} tokens the rows take ${bytes(last[1])}; in f16 they take ${bytes(last[2])}.` });
  for (const part of [0, 0.5, 1]) {
    s.append(svg('line', { class: 'grid', x1: left, x2: width - right, y1: y(mostY * part), y2: y(mostY * part) }),
      svg('text', { x: left - 6, y: y(mostY * part) + 4, 'text-anchor': 'end' }, bytes(mostY * part)));
  }
  s.append(svg('text', { x: width - right, y: height - 8, 'text-anchor': 'end' }, `${mostX.toLocaleString('en')} tokens`),
    svg('path', { class: 'exact', d: line(2) }), svg('path', { class: 'kept', d: line(1) }),
    svg('text', { x: left + 8, y: height - 8 }, 'line: kept; dashes: in f16'));
  $('chart').replaceChildren(s);
}

function drawFaded(d) {
  const groups = new Map();
  d.faded_at.forEach((at, i) => {
    if (at) groups.set(at, [...(groups.get(at) || []), i]);
  });
  $('no-fading').hidden = groups.size > 0;
  $('faded').hidden = groups.size === 0;
  const mean = (list, of) => list.reduce((sum, i) => sum + of[i], 0) / list.length;
  const rows = [...groups].sort((a, b) => b[0] - a[0]).slice(0, 40).map(([at, list]) => {
    const row = element('tr');
    const some = [...list].sort((a, b) => d.bits[a] - d.bits[b]).slice(0, 12).sort((a, b) => a - b);
    for (const cell of [at.toLocaleString('en'), list.length.toLocaleString('en'), mean(list, d.bits_before).toFixed(2),
      mean(list, d.bits).toFixed(2), mean(list, d.weight).toPrecision(2), some.map((i) => d.text[i].trim()).filter(Boolean).join(' \u00b7 ')]) {
      row.append(element('td', cell));
    }
    return row;
  });
  $('faded').tBodies[0].replaceChildren(...rows);
}

// Talking.

function say(role, text) {
  const p = element('p', text, { class: role });
  $('said').append(p);
  $('said').scrollTop = $('said').scrollHeight;
  return p;
}

async function ask(text) {
  state.messages.push({ role: 'user', content: text });
  const asked = say('user', text);
  const p = say('assistant', '');
  let reply = '';
  $('send').hidden = true;
  $('stop').hidden = false;
  state.abort = new AbortController();
  try {
    const response = await call('v1/chat/completions', { method: 'POST', signal: state.abort.signal,
      body: JSON.stringify({ messages: state.messages, stream: true, temperature: 0.3, max_tokens: 256 }) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data: {')) continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Error(event.error.message);
        if (event.kvist && event.kvist.conversation) state.current = event.kvist.conversation;
        const delta = event.choices.length ? event.choices[0].delta.content || '' : '';
        reply += delta;
        p.textContent = reply;
        $('said').scrollTop = $('said').scrollHeight;
      }
    }
    problem('');
  } catch (e) {
    if (e.name !== 'AbortError') problem(e.message);
  }
  if (reply) state.messages.push({ role: 'assistant', content: reply });
  else { state.messages.pop(); asked.remove(); p.remove(); $('message').value ||= text; }
  $('send').hidden = false;
  $('stop').hidden = true;
  state.abort = null;
  refresh();
}

async function change(path, options) {
  try {
    await call('v1/kvist/conversations/' + state.current + path, options);
    refresh();
  } catch (e) {
    problem(e.message);
  }
}

// What the reader does.

$('ask').addEventListener('submit', (e) => {
  e.preventDefault();
  const text = $('message').value.trim();
  if (!text || state.abort) return;
  $('message').value = '';
  ask(text);
});
$('message').addEventListener('keydown', (e) => {
  if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    $('ask').requestSubmit();
  }
});
$('stop').addEventListener('click', () => state.abort && state.abort.abort());
$('anew').addEventListener('click', () => {
  if (state.abort) state.abort.abort();
  state.messages = [];
  $('said').replaceChildren();
  $('message').focus();
});
$('login').addEventListener('submit', (e) => {
  e.preventDefault();
  state.key = $('key').value.trim();
  sessionStorage.setItem('kvist-key', state.key);
  $('key').value = '';
  refresh();
});
$('fade').addEventListener('click', () => change('/fade', { method: 'POST', body: JSON.stringify({ share: 0.5 }) }));
$('pin').addEventListener('click', () => change('/pin', { method: 'POST', body: JSON.stringify({ on: !state.data.pinned }) }));
$('forget').addEventListener('click', () => change('', { method: 'DELETE' }));
for (const name of ['mouseover', 'click']) {
  $('tokens').addEventListener(name, (e) => {
    if (e.target.id.startsWith('t') && e.target.parentElement === $('tokens')) select(Number(e.target.id.slice(1)), false);
  });
}
$('tokens').addEventListener('keydown', (e) => {
  const n = state.data ? state.data.text.length : 0;
  const to = { ArrowRight: state.at + 1, ArrowLeft: state.at - 1, ArrowDown: state.at + 10, ArrowUp: state.at - 10, Home: 0, End: n - 1 }[e.key];
  if (to === undefined) return;
  e.preventDefault();
  select(Math.max(0, Math.min(n - 1, to)));
});
addEventListener('resize', () => state.data && drawChart(state.data));

async function loop() {
  if ($('live').checked && !document.hidden) await refresh();
  setTimeout(loop, state.abort || (state.data && state.data.busy) ? 1000 : 2500);
}
loop();
