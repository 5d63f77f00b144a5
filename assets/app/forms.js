// Sends forms without a reload, and takes over what changed: the parts of the page that carry `data-part`. The server
// answers with whole pages; nothing is put together from data here.

const SIGN_IN = '/app/sign-in';

// Answers may overtake each other. Each says when the server began to read for it; a part is never replaced by an older
// one.
const shown = new Map();

/** Fetches a page; `undefined` when the browser goes elsewhere or the server cannot be reached. */
export async function fetched(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { credentials: 'same-origin', cache: 'no-store', ...options });
  } catch {
    return undefined;
  }
  if (new URL(answer.url).pathname === SIGN_IN && location.pathname !== SIGN_IN) {
    location.assign(SIGN_IN);
    return undefined;
  }
  if (!(answer.headers.get('content-type') ?? '').startsWith('text/html')) return undefined;
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  return { ok: answer.ok, page, readAt: Number(answer.headers.get('x-read-at')) };
}

/** Puts the parts of another page, or those named, in the place of ours. */
export function swap({ page, readAt }, names) {
  const kept = document.activeElement?.id;
  let changed = false;
  for (const fresh of page.querySelectorAll('[data-part]')) {
    const old = document.getElementById(fresh.id);
    if (!old || (names && !names.includes(fresh.id))) continue;
    if (shown.get(fresh.id) > readAt) continue;
    // Nobody is interrupted in what they type or pick; it is made up for when they are done.
    if (names && old.contains(document.activeElement) && isInUse(document.activeElement)) {
      old.addEventListener('focusout', () => document.dispatchEvent(new Event('app:stale')), { once: true });
      continue;
    }
    for (const box of old.querySelectorAll('input[name=recording]:checked')) {
      const same = fresh.querySelector(`#${CSS.escape(box.id)}`);
      if (names && same) same.setAttribute('checked', '');
    }
    for (const field of old.querySelectorAll('input[id]:not([type=checkbox]), select[id]')) {
      const same = fresh.querySelector(`#${CSS.escape(field.id)}`);
      if (same && (field.matches('select') ? names && field.value : isTyped(field))) same.value = field.value;
    }
    shown.set(fresh.id, readAt);
    const taken = document.adoptNode(fresh);
    old.replaceWith(taken);
    dress(taken);
    changed = true;
  }
  if (kept && document.activeElement === document.body) document.getElementById(kept)?.focus({ preventScroll: true });
  if (changed) document.dispatchEvent(new Event('app:swapped'));
}

// Fields whose text has been sent.
const sent = new WeakSet();

function isTyped(field) {
  return field.value !== field.defaultValue && !sent.has(field);
}

function isInUse(field) {
  return field.matches('select') || (field.matches('input:not([type=checkbox])') && isTyped(field));
}

/** Says something to who cannot see it. */
export function say(text) {
  const place = document.getElementById('news');
  if (place) place.textContent = text;
}

/** What scripts add to markup: times in the reader's zone, the count of what is picked. */
export function dress(root) {
  for (const time of root.querySelectorAll('time[datetime]')) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.valueOf())) continue;
    time.title = time.textContent;
    time.textContent = at.toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  }
  for (const form of root.querySelectorAll('form[data-picks]')) {
    const all = form.querySelector('[data-pick-all]');
    const boxes = [...form.querySelectorAll('input[name=recording]')];
    all.hidden = boxes.length < 2;
    all.addEventListener('click', () => {
      const rest = boxes.filter((box) => !box.checked);
      for (const box of boxes) box.checked = rest.length > 0;
      count(form, boxes);
    });
    form.addEventListener('change', () => count(form, boxes));
    count(form, boxes);
  }
}

function count(form, boxes) {
  const picked = boxes.filter((box) => box.checked).length;
  form.querySelector('[data-count]').textContent = picked > 0 ? `(${picked})` : '';
}

async function send(form, submitter) {
  const buttons = [...form.querySelectorAll('button')];
  const body = new URLSearchParams(new FormData(form, submitter));
  const texts = [...form.querySelectorAll('input')].map((field) => [field, field.value]);
  for (const button of buttons) button.disabled = true;
  const found = await fetched(form.action, { method: 'POST', body });
  for (const button of buttons) button.disabled = false;
  if (!found) {
    say('The server could not be reached.');
    return;
  }
  // What was typed since is not lost with what was sent.
  if (found.ok) for (const [field, text] of texts) if (field.value === text) sent.add(field);
  if (found.ok) swap(found);
  else swap(found, ['notice']);
  const notice = document.querySelector('#notice .notice');
  if (notice?.classList.contains('bad')) document.getElementById('main').scrollIntoView({ block: 'start' });
}

/** Takes over the forms that say so. */
export function enhance() {
  document.addEventListener('submit', (event) => {
    const form = event.target;
    if (form.dataset.confirm && !confirm(form.dataset.confirm)) {
      event.preventDefault();
      return;
    }
    if (!('swap' in form.dataset)) return;
    event.preventDefault();
    void send(form, event.submitter);
  });
}
