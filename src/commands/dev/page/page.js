// The page of `dev`: what the server tells at /live is shown, and the switches are posted.
import { bytes, duration, el, follow, many, pill, post, readable, say, setText, table, timeOfDay } from '/page.js';

const get = (id) => document.getElementById(id);
const MAX_SHOWN = 200;
const MINUTE = 240; // samples of the line, four a second

// The chain and its switches.

let state;

function showState(next) {
  state = next;
  setText(get('webhook'), next.webhook);
  setText(get('pending'), next.pending);
  setText(get('pending-words'), next.pending === 1 ? 'event waits in the buffer' : 'events wait in the buffer');
  const { accepted, repeated, delivered, failed } = next.qstash;
  setText(get('sidecar-counts'), `${next.accepted} accepted, ${many(next.dead, 'dead letter')}`);
  setText(get('qstash-counts'), `${accepted} taken, ${many(repeated, 'repeat')} dropped`);
  setText(get('receiver-counts'), `${delivered} delivered, ${failed} given up`);
  const { catcher, qstash } = next.switches;
  const isFailing = catcher.status >= 300;
  show('sidecar-is', next.pending > 0 && qstash !== 'none' ? ['keeps events', 'busy'] : ['works', 'good']);
  show('qstash-is', qstash === 'none' ? ['works', 'good'] : ['away', 'bad']);
  show('receiver-is', isFailing ? [catcher.every > 1 ? 'fails at times' : 'fails', 'bad'] : catcher.delayMs > 0 ? ['slow', 'busy'] : ['works', 'good']);
  choose(get('away'), qstash);
  choose(get('speed'), next.timeScale, (value) => `${value} times shorter`);
  choose(get('status'), catcher.status, (value) => `${value}`);
  type(get('every'), catcher.every);
  type(get('delay'), catcher.delayMs);
  showWaiting(next.waiting, next.pending);
}

function show(id, [words, kind]) {
  get(id).className = `pill ${kind}`;
  setText(get(id), words);
}

// A value that was set elsewhere, by a flag or another page, may be none of those offered.
function choose(select, value, name) {
  if (![...select.options].some((option) => option.value === String(value))) {
    select.append(el('option', { value }, name(value)));
  }
  select.value = value;
}

// Not under the hands of who is typing.
function type(input, value) {
  if (document.activeElement !== input) {
    input.value = value;
  }
}

function showWaiting(waiting, count) {
  const items = waiting.map(({ kind, about, at, attempts }) => el('li', {},
    el('span', {}, kind, ' ', el('span', { class: 'quiet' }, about)),
    el('span', { class: 'quiet' }, attempts > 0 ? many(attempts, 'attempt') : timeOfDay(at))));
  if (count > waiting.length) {
    items.push(el('li', { class: 'quiet' }, `and ${count - waiting.length} more`));
  }
  if (items.length === 0) {
    items.push(el('li', { class: 'quiet' }, 'none'));
  }
  get('waiting').querySelector('ul').replaceChildren(...items);
}

// The buffer over the last minute, as an area.
const line = [];

function drawLine() {
  line.push(state?.pending ?? 0);
  line.splice(0, line.length - MINUTE);
  const top = Math.max(5, ...line);
  const x = (n) => (120 - (line.length - 1 - n) * (120 / MINUTE)).toFixed(2);
  const y = (value) => (31 - 29 * value / top).toFixed(2);
  const points = line.map((value, n) => `L${x(n)} ${y(value)}`).join('');
  get('line').firstElementChild.setAttribute('d', `M${x(0)} 31${points}L120 31Z`);
}

const number = (input) => (input.checkValidity() && input.value !== '' ? Number(input.value) : null);

async function setCatcher() {
  const [every, delayMs] = [number(get('every')), number(get('delay'))];
  if (every === null || delayMs === null) {
    say('Numbers only: every n-th time from 1 up, after 0 to 3,600,000 ms.');
    return;
  }
  await post('/catcher', { status: Number(get('status').value), every, delayMs });
}

for (const id of ['status', 'every', 'delay']) {
  get(id).addEventListener('change', setCatcher);
}
get('away').addEventListener('change', ({ target }) => post('/qstash', { away: target.value }));
get('speed').addEventListener('change', ({ target }) => post('/speed', { timeScale: Number(target.value) }));

for (const [id, count] of [['sample', 1], ['samples', 20]]) {
  get(id).addEventListener('click', async ({ target }) => {
    target.disabled = true;
    const sent = await post('/sample', { count });
    target.disabled = false;
    target.focus();
    if (sent) {
      say(count === 1 ? 'The sidecar has it on disk and answered 202.' : `The sidecar has all ${count} on disk and answered 202.`);
    }
  });
}

// Each event's way.

const shown = new Map();

const STATES = {
  accepted: ['at QStash', ''],
  active: ['being delivered', 'busy'],
  delivered: ['delivered', 'good'],
  retry: ['will be retried', 'busy'],
  failed: ['given up', 'bad'],
  cancelled: ['cancelled', ''],
  arrived: ['arrived', 'good'],
  stranger: ['not from QStash', 'bad'],
};

function showWays(ways) {
  shown.clear();
  get('ways').replaceChildren();
  ways.forEach((way) => showWay(way));
  get('nothing').hidden = ways.length > 0;
}

function showWay(way, isNew = false) {
  const known = shown.get(way.id);
  const { element } = known ?? addWay(way, isNew);
  shown.set(way.id, { element, way });
  element.querySelector('summary').replaceChildren(...summary(way));
  if (element.querySelector('details').open) {
    showDetails(element, way.id);
  }
  get('nothing').hidden = true;
}

function addWay(way, isNew) {
  const details = el('details', { class: isNew ? 'event new' : 'event' }, el('summary'), el('div', { class: 'inside' }));
  const element = el('li', { 'data-id': way.id }, details);
  details.addEventListener('toggle', () => details.open && showDetails(element, way.id));
  get('ways').prepend(element);
  if (shown.size >= MAX_SHOWN) {
    const [oldest] = shown.keys();
    shown.get(oldest).element.remove();
    shown.delete(oldest);
  }
  return { element };
}

function summary(way) {
  const [words, kind] = STATES[way.state];
  const retried = way.attempts > 1 ? ` after ${way.attempts} attempts` : '';
  const parts = [
    el('time', { class: 'quiet mono', datetime: new Date(way.at).toISOString() }, timeOfDay(way.at)),
    el('span', { class: 'name' }, way.kind),
    el('span', { class: 'quiet grow' }, way.about || way.to),
    el('span', { class: 'wrap' }),
  ];
  if (way.state === 'retry') {
    parts.push(pill(`attempt ${way.attempts} failed`, 'bad'), pill(nextIn(way), 'busy'));
  } else if (way.state === 'accepted' && way.nextAt !== null) {
    parts.push(pill(nextIn(way), 'busy'));
  } else {
    parts.push(pill(words + (way.state === 'active' && way.attempts > 1 ? `, attempt ${way.attempts}` : retried), kind));
  }
  if (way.isVerified !== null && way.state !== 'stranger') {
    parts.push(way.isVerified ? pill('signature ✓', 'good') : pill('signature ✗', 'bad'));
  }
  return parts;
}

function nextIn(way) {
  const left = way.nextAt - Date.now();
  return left > 0 ? `next attempt in ${duration(left)}` : 'next attempt now';
}

async function showDetails(element, id) {
  const answer = await fetch(`/ways/${id}`).catch(() => null);
  const inside = element.querySelector('.inside');
  if (!answer?.ok) {
    inside.replaceChildren(el('p', { class: 'quiet' }, 'The details of this one are gone: only the latest are kept.'));
    return;
  }
  const { steps, arrival, to, eventId } = await answer.json();
  const parts = [table([['to', to], ['message', id], ['event', eventId]])];
  if (steps.length > 0) {
    parts.push(el('ol', { class: 'steps' }, ...steps.map(({ at, what, text }) => el('li', { class: what }, el('time', {}, timeOfDay(at)), text))));
  }
  if (arrival) {
    parts.push(
      el('h3', {}, 'What the receiver got last'),
      el('p', {}, pill(`signature ${arrival.verdict}`, arrival.isVerified ? 'good' : 'bad'), ' ', pill(`answered ${arrival.answered}`, arrival.answered < 300 ? 'good' : 'bad')),
      el('p', {}, el('code', {}, arrival.line)),
      table(arrival.headers),
      el('p', { class: 'quiet' }, `Body, ${bytes(arrival.size)}${arrival.hidden > 0 ? `, the last ${bytes(arrival.hidden)} not shown` : ''}`),
      el('pre', { tabindex: '0', 'aria-label': 'Body' }, arrival.hidden > 0 ? arrival.body : readable(arrival.body)),
    );
  } else if (steps.length > 0) {
    parts.push(el('p', { class: 'quiet' }, 'It has not arrived at the receiver.'));
  }
  // Not while somebody marks a text in it.
  if (inside.contains(document.getSelection()?.anchorNode) && !document.getSelection().isCollapsed) {
    return;
  }
  const top = inside.querySelector('pre')?.scrollTop;
  inside.replaceChildren(...parts);
  if (top) {
    inside.querySelector('pre').scrollTop = top;
  }
}

setInterval(drawLine, 250);
setInterval(() => {
  for (const { element, way } of shown.values()) {
    if (way.nextAt !== null && (way.state === 'retry' || way.state === 'accepted')) {
      element.querySelector('summary').replaceChildren(...summary(way));
    }
  }
}, 1000);

follow('/live', { state: showState, ways: showWays, way: (way) => showWay(way, true) }, (isConnected) => {
  get('connection').className = `pill ${isConnected ? 'good' : 'bad'}`;
  setText(get('connection'), isConnected ? 'live' : 'not connected, trying again');
});
