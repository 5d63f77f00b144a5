// Keeps the page up to date. The socket says that something changed; what it is now is asked of the server, so a
// message that was missed, or a connection that was lost, leaves nothing wrong: after each connect all is read anew.
import { fetched, say, swap } from './forms.js';

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15000;
const SYNC_LOOK = 1500;
const ALL = ['queue', 'meetings', 'history', 'delivery', 'files'];

let wait = FIRST_WAIT;
let isOpen = false;
let hasBeenOpen = false;
let pending;
let isReading = false;
let again;

function mark() {
  for (const place of document.querySelectorAll('[data-live]')) {
    place.hidden = !hasBeenOpen;
    place.classList.toggle('lost', !isOpen);
    place.textContent = isOpen ? 'Live' : 'Reconnecting';
  }
}

/** Reads parts anew, soon; what is asked for meanwhile is read together. */
function refresh(names, delay = 120) {
  again = new Set([...(again ?? []), ...names]);
  pending ??= setTimeout(read, delay);
}

async function read() {
  pending = undefined;
  if (isReading) {
    pending = setTimeout(read, 120);
    return;
  }
  const names = [...(again ?? [])];
  again = undefined;
  isReading = true;
  const here = document.getElementById('meetings')?.dataset.address ?? location.pathname + location.search;
  const isPanelAlone = names.length === 1 && names[0] === 'queue';
  const address = isPanelAlone ? `/app/queue/panel?page=${encodeURIComponent(here)}` : here;
  const found = await fetched(address);
  isReading = false;
  if (found?.ok) swap(found, names);
}

const NEWS = {
  task_completed: 'A delivery is finished.',
  task_failed: 'A delivery failed.',
  task_started: 'A delivery began.',
};

function progress(update) {
  const job = document.querySelector(`[data-job="${CSS.escape(String(update.job_id))}"]`);
  const bar = job?.querySelector('[data-bar]');
  if (!bar) {
    refresh(['queue']);
    return;
  }
  const percent = Number.isFinite(update.percent) ? Math.min(100, Math.max(0, update.percent)) : undefined;
  if (percent === undefined) bar.removeAttribute('value');
  else bar.value = percent;
  const eta = update.eta_seconds;
  const left = !Number.isFinite(eta) || eta < 1 ? '' : eta < 90 ? `${Math.round(eta)} s left` : `${Math.round(eta / 60)} min left`;
  job.querySelector('[data-step]').textContent = update.step ?? '';
  job.querySelector('[data-percent]').textContent = percent === undefined ? '' : `${Math.round(percent)} %`;
  job.querySelector('[data-eta]').textContent = left;
}

function hear(event) {
  let update;
  try {
    update = JSON.parse(event.data);
  } catch {
    return;
  }
  if (update.type === 'ProgressUpdate') progress(update);
  if (update.type !== 'QueueUpdate') return;
  const isNews = update.update_type in NEWS;
  refresh(isNews ? ALL : ['queue', 'delivery']);
  if (isNews) say(NEWS[update.update_type]);
}

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
  const socket = new WebSocket(`${scheme}//${location.host}/queue_updates`);
  socket.onopen = () => {
    isOpen = true;
    wait = FIRST_WAIT;
    mark();
    if (hasBeenOpen) refresh(ALL);
    hasBeenOpen = true;
    mark();
  };
  socket.onmessage = hear;
  socket.onclose = () => {
    isOpen = false;
    mark();
    // The page asks once, which also finds out that the session is over.
    if (!hasBeenOpen) refresh(['queue']);
    setTimeout(connect, wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, LONGEST_WAIT);
  };
}

/** While meetings are looked for, the list is read until they are there. */
function watchSync() {
  if (document.getElementById('meetings')?.dataset.sync === 'syncing') refresh(['meetings'], SYNC_LOOK);
}

/** Begins. */
export function listen() {
  document.addEventListener('app:swapped', () => {
    mark();
    watchSync();
  });
  document.addEventListener('app:stale', () => refresh(ALL));
  document.addEventListener('visibilitychange', () => {
    if (document.visibilityState === 'visible') refresh(['queue']);
  });
  connect();
  watchSync();
}
