// The status page. It asks again every two seconds rather than being told (server-sent events),
// since an EventSource cannot carry the token.
import { bytes, duration, el, many, pill, post, readable, say, setText, table, timeOfDay } from '/page.js';

const get = (id) => document.getElementById(id);
const EVERY = 2000;
const LISTED = 50;
const LETTERS = 20;
const LARGEST_BODY = 256 << 10;
const SURE_FOR = 5000;
const HABIT = 500;

// The token is kept for this tab only. A cookie would go out with the requests of other sites'
// pages as well, localStorage would outlive the tab on a shared machine, and a variable alone
// would ask again at each reload.
const TOKEN = 'admin-token';

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: `Bearer ${token}` } : {};
}

class Refused extends Error {}

async function ask(path) {
  const answer = await fetch(path, { headers: headers() });
  if (answer.status === 401) {
    throw new Refused();
  }
  if (!answer.ok) {
    throw new Error((await answer.text()).trim());
  }
  return answer;
}

const askJson = async (path) => (await ask(path)).json();

// The whole of it, one round at a time.

let timer;
let round = 0;

async function update() {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  try {
    const [status, letters, events] = await Promise.all([
      askJson('/api/status'),
      askJson(`/api/events?state=dead&limit=${LETTERS}`),
      // What is read at leisure, further down, stays as it is.
      before === null ? askJson(query()) : null,
    ]);
    if (mine !== round) {
      return; // a later one is on its way
    }
    connected(true);
    get('ask').hidden = true;
    document.querySelector('main').hidden = false;
    showStatus(status);
    showLetters(letters.events, status.events.dead);
    if (events !== null && before === null) {
      showEvents(events);
    }
  } catch (error) {
    if (mine !== round) {
      return;
    }
    if (error instanceof Refused) {
      askForToken();
      return;
    }
    connected(false, error);
  }
  timer = setTimeout(update, EVERY);
}

function connected(is, error) {
  get('connection').className = `pill ${is ? 'good' : 'bad'}`;
  setText(get('connection'), is ? 'live' : 'not connected, trying again');
  get('connection').title = is ? '' : String(error?.message ?? '');
}

function askForToken() {
  const wasWrong = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  document.querySelector('main').hidden = true;
  get('ask').hidden = false;
  setText(get('refusal'), wasWrong ? 'That was not the token.' : 'It stays in this tab and is forgotten when the tab is closed.');
  setText(get('connection'), 'locked');
  get('token').focus();
}

get('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, get('token').value);
  get('token').value = '';
  update();
});

document.addEventListener('visibilitychange', () => {
  clearTimeout(timer);
  if (!document.hidden) {
    update();
  }
});

// The numbers.

const count = (number) => number.toLocaleString('en');

function showStatus(status) {
  const { events, qstash } = status;
  get('verdict').className = `verdict ${status.level}`;
  setText(get('verdict'), status.sentence);
  setText(get('version'), status.version);
  document.title = `${status.level === 'good' ? '' : '● '}strapi-qstash`;
  setText(get('pending'), count(events.pending));
  setText(get('pending-words'), events.pending === 1 ? 'event waits' : 'events wait');
  setText(get('oldest'), events.pending > 0 ? `The oldest came ${duration(status.oldest_age_seconds * 1000)} ago.` : '');
  const { buffer } = status;
  setText(get('disk'), buffer ? `${bytes(buffer.used_bytes)} of ${bytes(buffer.limit_bytes)} used` : '');
  get('qstash-is').className = `pill ${qstash.flowing ? 'good' : 'bad'}`;
  setText(get('qstash-is'), qstash.flowing ? 'takes events' : qstash.cause);
  setText(get('since'), `since ${dateTime(qstash.since)}, for ${duration(Date.now() - Date.parse(qstash.since))}`);
  const missing = status.held.map((name) => `${name} does not exist.`);
  setText(get('qstash-words'), [qstash.reason, ...missing].filter(Boolean).join(' '));
  const { quota } = qstash;
  setText(get('quota'), quota ? `${count(quota.remaining)} of ${count(quota.limit)} messages left today` : '');
  drawPlot(status.per_minute);
  const rows = Object.entries(status.settings).map(([name, value]) => [`--${name.replaceAll('_', '-')}`, value]);
  const told = JSON.stringify(rows);
  if (get('settings').dataset.told !== told) {
    get('settings').dataset.told = told;
    get('settings').replaceChildren(table(rows));
  }
}

function drawPlot({ accepted, delivered }) {
  const top = Math.max(5, ...accepted, ...delivered);
  const points = (counts) => counts.map((value, minute) => `${minute} ${(39 - 37 * value / top).toFixed(2)}`).join('L');
  const [area, line] = get('plot').children;
  area.setAttribute('d', `M0 39L${points(accepted)}L59 39Z`);
  line.setAttribute('d', `M${points(delivered)}`);
  const last = accepted.at(-2);
  setText(get('rate'), `${count(last)} came in the last whole minute, ${count(Math.max(...accepted))} in the busiest of this hour`);
  const sum = (counts) => count(counts.reduce((all, one) => all + one, 0));
  get('plot').setAttribute('aria-label', `In the last hour ${sum(accepted)} accepted and ${sum(delivered)} delivered`);
}

function dateTime(text) {
  const at = new Date(text);
  const today = new Date().toDateString() === at.toDateString();
  return today ? timeOfDay(at) : `${at.toLocaleDateString('en-CA')} ${timeOfDay(at)}`;
}

// What is new comes, what is gone goes, and what stays is not touched, so that an open story, the
// focus and a selection survive.
function keep(list, items, make, change) {
  const known = new Map([...list.children].map((element) => [element.dataset.id, element]));
  let at = list.firstElementChild;
  for (const item of items) {
    const element = known.get(item.id) ?? make(item);
    known.delete(item.id);
    const told = JSON.stringify(item);
    if (element.dataset.told !== told) {
      element.dataset.told = told;
      change(element, item);
    }
    if (element === at) {
      at = at.nextElementSibling;
    } else {
      list.insertBefore(element, at);
    }
  }
  known.forEach((element) => element.remove());
}

const about = (event) => [event.uid ?? event.model, event.document, event.locale].filter(Boolean).join(' ');

// Dead letters.

function showLetters(letters, all) {
  get('dead').className = `pill ${all > 0 ? 'bad' : 'good'}`;
  setText(get('dead'), count(all));
  get('no-letters').hidden = all > 0;
  const had = document.activeElement?.closest('.letter');
  const next = had?.nextElementSibling ?? had?.previousElementSibling;
  keep(get('letters-list'), letters, makeLetter, () => {});
  if (had && !had.isConnected) {
    (next?.isConnected ? next.querySelector('button') : get('letters-title')).focus();
  }
  get('more-letters').hidden = all <= letters.length;
  setText(get('more-letters'), `The newest ${letters.length} of ${count(all)}. More at once: strapi-qstash events replay --state dead`);
}

function makeLetter(event) {
  return el('li', { class: 'letter', 'data-id': event.id },
    el('time', { class: 'quiet mono', datetime: event.received_at }, dateTime(event.received_at)),
    el('span', { class: 'name' }, event.event),
    el('span', { class: 'quiet grow' }, about(event)),
    acts(event),
    el('span', { class: 'why' }, event.reason));
}

function acts(event) {
  const name = `${event.event} of ${dateTime(event.received_at)}`;
  const replay = el('button', { 'aria-label': `Replay ${name}` }, 'Replay');
  const discard = el('button', { 'aria-label': `Discard ${name}` }, 'Discard');
  replay.addEventListener('click', () => act(event.id, 'replay', 'It will be published once more.'));
  // What is discarded is gone: it takes a second press, and no double click by habit.
  let calming;
  let pressed = 0;
  const calm = () => {
    discard.className = '';
    setText(discard, 'Discard');
    discard.setAttribute('aria-label', `Discard ${name}`);
  };
  discard.addEventListener('click', () => {
    if (performance.now() - pressed < HABIT) {
      return;
    }
    pressed = performance.now();
    clearTimeout(calming);
    if (discard.className === 'sure') {
      calm();
      act(event.id, 'discard', 'It is deleted.');
      return;
    }
    discard.className = 'sure';
    setText(discard, 'Delete for good?');
    discard.setAttribute('aria-label', `Delete ${name} for good?`);
    calming = setTimeout(calm, SURE_FOR);
  });
  return el('span', { class: 'row acts' }, replay, discard);
}

async function act(id, verb, done) {
  if (await post(`/api/events/${id}/${verb}`, {}, headers())) {
    say(done);
    await update();
  }
}

// Events.

let before = null;
let next = null;

function query() {
  const asked = { state: 'state', event: 'event', uid: 'uid', document: 'document', since: 'since-when' };
  const values = Object.entries(asked).map(([name, id]) => [name, get(id).value.trim()]);
  const words = new URLSearchParams([...values.filter(([, value]) => value !== ''), ['limit', LISTED]]);
  if (before !== null) {
    words.set('before', before);
  }
  return `/api/events?${words}`;
}

function showEvents({ events, next: further }) {
  next = further;
  keep(get('events'), events, makeEvent, changeEvent);
  get('nothing').hidden = events.length > 0;
  setText(get('nothing'), further === null ? 'No event is like that.' : 'None among the newest that are like that; look at older ones.');
  get('older').hidden = further === null;
  get('newest').hidden = before === null;
}

async function turn(to) {
  before = to;
  try {
    showEvents(await askJson(query()));
  } catch (error) {
    say(`That did not work: ${error.message}`);
  }
}

get('older').addEventListener('click', async () => {
  await turn(next);
  get('events-title').scrollIntoView();
});
get('newest').addEventListener('click', () => turn(null));

let typing;
for (const id of ['state', 'event', 'uid', 'document', 'since-when']) {
  get(id).addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => turn(null), 200);
  });
}

const STATES = { pending: ['pending', 'busy'], delivered: ['delivered', 'good'], dead: ['dead letter', 'bad'] };

function makeEvent(event) {
  const details = el('details', { class: 'event' }, el('summary'), el('div', { class: 'inside' }));
  details.addEventListener('toggle', () => details.open && showStory(details, event.id));
  return el('li', { 'data-id': event.id }, details);
}

function changeEvent(element, event) {
  const [words, kind] = STATES[event.state];
  const details = element.firstElementChild;
  details.firstElementChild.replaceChildren(
    el('time', { class: 'quiet mono', datetime: event.received_at }, dateTime(event.received_at)),
    el('span', { class: 'name' }, event.event),
    el('span', { class: 'quiet grow' }, about(event)),
    event.state === 'pending' && event.attempts > 0 ? pill(many(event.attempts, 'attempt')) : '',
    pill(words, kind),
  );
  if (details.open) {
    showStory(details, event.id);
  }
}

async function showStory(details, id) {
  const inside = details.lastElementChild;
  let story;
  try {
    story = await askJson(`/api/events/${id}`);
  } catch (error) {
    inside.replaceChildren(el('p', { class: 'quiet' }, error.message));
    return;
  }
  const parts = [
    table([
      ['id', id], ['received', story.received_at], ['on disk', story.stored_at], ['to', story.destination], ['options', story.options],
      ['size', bytes(story.size)], ['attempts', String(story.attempts)], ['due', story.due_at],
      ['settled', story.settled_at], ['message', story.message_ids?.join(' ')], ['reason', story.reason],
    ]),
    steps(story),
  ];
  if (story.state !== 'pending') {
    parts.push(acts(story));
  }
  parts.push(body(story));
  inside.replaceChildren(...parts.filter(Boolean));
}

function steps(story) {
  const kinds = { failed: 'failed', dead: 'failed', delivered: 'delivered' };
  const items = story.steps.map(({ what, first_at: first, last_at: last, count: times, words }) => el('li', { class: kinds[what] },
    el('time', { datetime: first }, dateTime(first)),
    [what, times > 1 ? `${times} times, last at ${dateTime(last)}` : '', words ? `(${words})` : ''].filter(Boolean).join(' ')));
  return items.length > 0 ? el('ol', { class: 'steps' }, ...items) : null;
}

function body(story) {
  if (story.size > LARGEST_BODY) {
    return el('p', { class: 'quiet' }, `Its body has ${bytes(story.size)}: strapi-qstash events export has it as a file.`);
  }
  const show = el('button', {}, 'Show the body');
  show.addEventListener('click', async () => {
    try {
      const text = await (await ask(`/api/events/${story.id}/body`)).text();
      const shown = el('pre', { tabindex: '0', 'aria-label': 'Body' }, readable(text));
      show.replaceWith(shown);
      shown.focus();
    } catch (error) {
      say(`That did not work: ${error.message}`);
    }
  });
  return show;
}

update();
