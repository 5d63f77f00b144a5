// The page in a real browser, from the first visit to a delivered meeting. POCKETFLEET_PORT is where pocketfleet
// listens; the browser finds it at http://localhost:3000, so that the sample for browsers runs as it was written.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { eventually, open } from './browser.mjs';

const BASE = 'http://localhost:3000';
const need = (name) => process.env[name] ?? assert.fail(`${name} is not set`);
const WRONG = 'this-is-not-a-key';
const KEY = need('FATHOM_KEY');
const LOOM_LINK = need('LOOM_LINK');

// As it was written, word for word.
const SAMPLE = `
const ws = new WebSocket('ws://localhost:3000/queue_updates');
ws.onmessage = (event) => {
  const update = JSON.parse(event.data);
  console.log('Queue update:', update);
};
`;

let browser;
let page;

before(async () => {
  const port = need('POCKETFLEET_PORT');
  browser = await open({ args: [`--host-resolver-rules=MAP localhost:3000 127.0.0.1:${port}`] });
  page = browser.page;
});
after(async () => browser?.close());

const notice = () => page.locator('#notice .notice').innerText();
const jobs = () => page.locator('#queue .job');

test('somebody new registers', async () => {
  await page.goto(`${BASE}/app`);
  assert.equal(new URL(page.url()).pathname, '/app/sign-in');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'email', 'the first field has the focus');
  await page.getByRole('link', { name: 'Create an account' }).click();
  await page.getByLabel('Name').fill('Ada');
  await page.getByLabel('E-mail').fill('ada@example.com');
  await page.getByLabel('Password').fill('correct horse');
  await page.getByRole('button', { name: 'Create the account' }).click();
  await page.waitForURL(/\/app\?said=welcome$/);
  const cookies = await browser.context.cookies();
  const session = cookies.find((cookie) => cookie.name === 'session_token');
  assert.ok(session.httpOnly && session.sameSite === 'Lax');
  assert.equal(await page.evaluate(() => document.cookie), '', 'scripts see no cookie');
});

test('a wrong key is told, and the right one brings the meetings', async () => {
  await page.getByLabel('Fathom API key').fill(WRONG);
  await page.getByRole('button', { name: /Store the key/ }).click();
  await page.locator('#notice .notice.bad').waitFor();
  assert.ok(!(await page.content()).includes(WRONG), 'the key is not sent back');
  // A refused form is an answer with an error's status, which browsers note down.
  const noted = browser.faults.splice(0);
  assert.ok(noted.every((fault) => /status of 4\d\d/.test(fault)), `${noted}`);
  await page.goto(`${BASE}/app/settings`);
  await page.getByLabel('Fathom API key').fill(KEY);
  await page.getByRole('button', { name: 'Store the key' }).click();
  await page.waitForURL(/\/app\?said=key-saved$/);
  // The list fills by itself.
  await page.locator('.meetings > li').first().waitFor();
  await eventually('the list is up to date', async () => (await page.locator('#meetings').getAttribute('data-sync')) === 'fresh');
  assert.equal(await page.locator('#sync-error').count(), 0);
  await page.goto(`${BASE}/app/settings`);
  const keys = await page.locator('#keys').innerText();
  assert.ok(keys.includes(`…${KEY.slice(-4)}`) && !keys.includes(KEY), keys);
});

test('meetings are found by what is in them', async () => {
  await page.goto(`${BASE}/app`);
  const title = await page.locator('.meetings .title').first().innerText();
  const word = title.split(/\s+/).sort((a, b) => b.length - a.length)[0];
  await page.getByLabel('Search meetings').fill(word);
  await page.keyboard.press('Enter');
  await page.waitForURL(/search=/);
  const found = await page.locator('.meetings .title').allInnerTexts();
  assert.ok(found.includes(title), `${word}: ${found}`);
  await page.getByLabel('Search meetings').fill('qqxyzzyqq');
  await page.getByRole('button', { name: 'Search' }).click();
  await page.getByText('Nothing found for').waitFor();
  await page.getByRole('link', { name: 'Show all' }).click();
  await page.locator('.meetings > li').first().waitFor();
});

test('a folder and Loom are added, and the folder is the default', async () => {
  await page.goto(`${BASE}/app/settings`);
  await page.getByText('A folder on this server').click();
  await page.getByLabel('Name').first().fill('Archive');
  await page.locator('details[open]').getByLabel('Use it by default').check();
  await page.getByRole('button', { name: 'Add the folder' }).click();
  await page.locator('#destinations .rows').getByText('Archive').waitFor();
  await page.getByText('Loom (you upload').click();
  await page.locator('#loom-name').fill('My Loom');
  await page.getByRole('button', { name: 'Add Loom' }).click();
  await page.locator('#destinations .rows').getByText('My Loom').waitFor();
  assert.match(await page.locator('#destinations .rows > li', { hasText: 'Archive' }).innerText(), /default/);
});

test('three meetings are queued and delivered before our eyes', async () => {
  await page.goto(`${BASE}/app`);
  await page.getByText('Live', { exact: true }).waitFor();
  await page.evaluate(() => {
    window.seen = { percents: [], positions: [] };
    new MutationObserver(() => {
      for (const bar of document.querySelectorAll('progress[data-bar][value]')) window.seen.percents.push(Number(bar.value));
      for (const place of document.querySelectorAll('#queue .position')) window.seen.positions.push(place.textContent);
    }).observe(document.getElementById('main'), { subtree: true, childList: true, attributes: true });
  });
  const boxes = page.locator('.meetings input[type=checkbox]');
  for (const at of [0, 1, 2]) await boxes.nth(at).check();
  await page.getByText('(3)').waitFor();
  await page.getByRole('button', { name: /Add to the queue/ }).click();
  await eventually('it says so', async () => /Added to the queue/.test(await notice()));
  const url = page.url();
  await eventually('three are delivered', async () => (await page.locator('.meetings .badge.delivered').count()) === 3);
  assert.equal(page.url(), url, 'without a reload');
  await eventually('the queue is empty', async () => (await jobs().count()) === 0);
  const seen = await page.evaluate(() => window.seen);
  assert.ok(seen.positions.length > 0, 'positions were shown');
  assert.ok(seen.percents.some((percent) => percent > 0 && percent < 100), `progress was shown: ${seen.percents}`);
});

test('the summary is shown, and the video can be had with the right bytes', async () => {
  await page.locator('.meetings .title').first().click();
  await page.waitForURL(/\/app\/meetings\//);
  assert.ok((await page.locator('#summary').innerText()).length > 20);
  await page.locator('#transcript summary').click();
  assert.ok((await page.locator('#transcript li').count()) > 2);
  const link = page.locator('#files a', { hasText: '.mp4' }).first();
  const [download] = await Promise.all([page.waitForEvent('download'), link.click()]);
  const bytes = await readFile(await download.path());
  const digest = createHash('sha256').update(bytes).digest('hex');
  const id = decodeURIComponent(new URL(page.url()).pathname.split('/').pop());
  const wanted = JSON.parse(need('VIDEOS'))[id];
  assert.equal(digest, wanted, `${bytes.length} bytes of ${id}`);
});

test('a video for Loom is handed over, and its link delivers it', async () => {
  await page.goto(`${BASE}/app`);
  await page.locator('.meetings input[type=checkbox]').nth(3).check();
  await page.getByLabel('Deliver to').selectOption({ label: 'My Loom' });
  await page.getByRole('button', { name: /Add to the queue/ }).click();
  const item = page.locator('#queue .job', { hasText: 'waits for you' });
  await item.waitFor();
  const [download] = await Promise.all([page.waitForEvent('download'), item.getByText('Download the video').click()]);
  assert.ok((await readFile(await download.path())).length > 1000);
  const field = item.getByLabel('Link of the video in Loom');
  await field.fill('https://evil.example/share/1');
  await item.getByRole('button', { name: 'Done' }).click();
  await page.locator('#notice .notice.bad').waitFor();
  // A refused link is an answer with an error's status, which browsers note down, some time.
  await eventually('it is noted', async () => browser.faults.length > 0);
  const noted = browser.faults.splice(0);
  assert.ok(noted.every((fault) => /status of 4\d\d/.test(fault)), `${noted}`);
  await item.getByLabel('Link of the video in Loom').fill(LOOM_LINK);
  // With the focus still in the field, the page goes on.
  await page.keyboard.press('Enter');
  await eventually('four are delivered', async () => (await page.locator('.meetings .badge.delivered').count()) === 4);
});

test('pause, to the front, cancel, retry', async () => {
  await page.getByRole('button', { name: 'Pause' }).click();
  await page.getByText('Paused: nothing new starts').waitFor();
  const boxes = page.locator('.meetings input[type=checkbox]');
  for (const at of [4, 5]) await boxes.nth(at).check();
  await page.getByRole('button', { name: /Add to the queue/ }).click();
  await eventually('two wait', async () => (await jobs().count()) === 2);
  const second = await jobs().nth(1).getAttribute('data-name');
  await jobs().nth(1).getByRole('button', { name: /to the front/ }).focus();
  await page.keyboard.press('Enter');
  await eventually('they changed places', async () => (await jobs().first().getAttribute('data-name')) === second);
  await jobs().nth(1).getByRole('button', { name: /^Cancel/ }).click();
  await eventually('one is left', async () => (await jobs().count()) === 1);
  await page.getByRole('link', { name: 'Queue' }).click();
  await page.locator('#history .badge.cancelled').waitFor();
  await page.locator('#history').getByRole('button', { name: /^Retry/ }).first().click();
  await eventually('it is back', async () => (await jobs().count()) === 2);
  await page.getByRole('button', { name: 'Resume' }).click();
  await eventually('all is done', async () => (await jobs().count()) === 0);
});

test('the sample for browsers runs as it was written', async () => {
  const heard = [];
  const listener = async (message) => {
    if (message.text().startsWith('Queue update:')) heard.push(await message.args()[1].jsonValue());
  };
  page.on('console', listener);
  await page.evaluate(SAMPLE);
  await page.goto('about:blank').catch(() => {});
  await page.goto(`${BASE}/app`);
  await page.evaluate(SAMPLE);
  await page.locator('.meetings input[type=checkbox]').nth(6).check();
  await page.getByRole('button', { name: /Add to the queue/ }).click();
  await eventually('the sample hears of it', () => heard.some((update) => update.type === 'QueueUpdate' && update.update_type === 'meeting_added'));
  await eventually('and of its end', () => heard.some((update) => update.update_type === 'task_completed'));
  assert.ok(heard.some((update) => update.type === 'ProgressUpdate'), JSON.stringify(heard.map((update) => update.type)));
  page.off('console', listener);
});

test('what strangers wrote stays text', async () => {
  const evil = `"'><script>window.pwned = 1</script><img src=x onerror="window.pwned = 1">`;
  const meeting = {
    title: `Evil ${evil}`,
    default_summary: { template_name: 'general', markdown_formatted: `# ${evil}\n- [click](javascript:window.pwned=1) ${evil}` },
  };
  const body = JSON.stringify({ key: KEY, meeting });
  const made = await fetch(`${need('STANDIN')}/_control/meetings`, { method: 'POST', body, headers: { 'content-type': 'application/json' } });
  assert.ok(made.ok, await made.text());
  await page.goto(`${BASE}/app`);
  await page.getByRole('button', { name: 'Look for new ones' }).click();
  const title = page.locator('.meetings .title', { hasText: 'Evil' });
  await title.waitFor();
  assert.equal(await title.innerText(), meeting.title);
  await title.click();
  await page.waitForURL(/\/app\/meetings\//);
  assert.equal(await page.locator('h1').innerText(), meeting.title);
  assert.ok((await page.locator('#summary').innerText()).includes('<script>'));
  assert.equal(await page.locator('#summary a').count(), 0);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
});

test('the keyboard leads through the page', async () => {
  await page.goto(`${BASE}/app/queue`);
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.className), 'skip');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll('a, button, input:not([type=hidden]), select, progress')]
      .filter((one) => !(one.getAttribute('aria-label') || one.labels?.length || one.textContent.trim()))
      .map((one) => one.outerHTML),
  );
  assert.deepEqual(unnamed, []);
  await page.setViewportSize({ width: 360, height: 740 });
  for (const path of ['/app', '/app/queue', '/app/settings', '/app/account']) {
    await page.goto(BASE + path);
    const width = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(width <= 360, `${path} is ${width} wide`);
  }
});

test('signed out is signed out', async () => {
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.goto(`${BASE}/app`);
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByText('You are signed out.').waitFor();
  await page.goBack();
  await page.waitForURL(/sign-in/);
  assert.equal((await browser.context.cookies()).length, 0);
});

test('nothing went wrong on the way', () => {
  assert.deepEqual(browser.faults, []);
});
