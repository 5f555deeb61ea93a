// What the scripts of all pages share. Values from outside become text, never markup.

// An element: `el('p', { class: 'quiet' }, 'text', child)`. What is null or undefined is left out.
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) {
      element.setAttribute(key, value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Sets a text only where it is another one, so that a selection in it survives.
export function setText(element, text) {
  if (element.textContent !== String(text)) {
    element.textContent = text;
  }
}

export function pill(text, kind = '') {
  return el('span', { class: `pill ${kind}` }, text);
}

// 14:03:07
export function timeOfDay(millis) {
  const date = new Date(millis);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, '0')).join(':');
}

// 12 s, 2 min 28 s, 6 h 7 min
export function duration(millis) {
  const seconds = Math.max(0, Math.ceil(millis / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  if (h > 0) {
    return `${h} h ${m} min`;
  }
  return m > 0 ? `${m} min ${s} s` : `${s} s`;
}

export function bytes(count) {
  const units = ['bytes', 'KiB', 'MiB', 'GiB'];
  const unit = count < 1024 ? 0 : Math.min(3, Math.floor(Math.log2(count) / 10));
  return `${unit === 0 ? count : (count / 1024 ** unit).toFixed(1)} ${units[unit]}`;
}

export const many = (count, what) => `${count} ${what}${count === 1 ? '' : 's'}`;

// Names and values; those without a value are left out.
export function table(rows) {
  const shown = rows.filter(([, value]) => value).map(([name, value]) => el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, el('code', {}, value))));
  return el('table', { class: 'table' }, el('tbody', {}, ...shown));
}

// JSON with its lines, anything else as it is.
export function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

let clearing;

// Says something to everybody, also to who cannot see it.
export function say(text) {
  const toast = document.querySelector('.toast');
  toast.textContent = text;
  clearTimeout(clearing);
  clearing = setTimeout(() => { toast.textContent = ''; }, 5000);
}

// A change; what the server answers, or null when it refused, which is said.
export async function post(path, body, headers = {}) {
  try {
    const answer = await fetch(path, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) });
    if (answer.ok) {
      return await answer.json();
    }
    say(`That did not work: ${(await answer.text()).trim()}`);
  } catch {
    say('The program does not answer. Is it still running?');
  }
  return null;
}

// Follows server-sent events for as long as the page is open; the browser connects again by itself.
export function follow(path, handlers, isConnected) {
  const source = new EventSource(path);
  source.addEventListener('open', () => isConnected(true));
  source.addEventListener('error', () => {
    isConnected(false);
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => follow(path, handlers, isConnected), 3000);
    }
  });
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
}
