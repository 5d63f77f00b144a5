// Pictures for the README, of a demonstration that runs. See scripts/screenshots.
import { join } from 'node:path';
import { eventually, open } from './browser.mjs';

const { POCKETFLEET_URL: app, DEMO_EMAIL: email, DEMO_PASSWORD: password, DEMO_KEY: key, PICTURES: folder } = process.env;
const { page, close } = await open({ viewport: { width: 1200, height: 760 } });
const picture = (name) => page.screenshot({ path: join(folder, `${name}.png`) });

try {
  await page.goto(app);
  await page.getByLabel('E-mail').fill(email);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByLabel('Fathom API key').fill(key);
  await page.getByRole('button', { name: /Store the key/ }).click();
  await page.locator('.meetings > li').nth(9).waitFor();
  await eventually('the list is up to date', async () => (await page.locator('#meetings').getAttribute('data-sync')) === 'fresh');

  await page.goto(`${app}/settings`);
  await page.getByText('A folder on this server').click();
  await page.locator('#folder-name').fill('Archive');
  await page.locator('details[open]').getByLabel('Use it by default').check();
  await page.getByRole('button', { name: 'Add the folder' }).click();
  await page.locator('#destinations .rows').getByText('Archive').waitFor();
  await page.getByText('Loom (you upload').click();
  await page.getByRole('button', { name: 'Add Loom' }).click();
  await page.locator('#destinations .rows').getByText('Loom').first().waitFor();
  await page.goto(`${app}/settings`);
  await picture('settings');

  await page.goto(app);
  const boxes = page.locator('.meetings input[type=checkbox]');
  await boxes.nth(3).check();
  await page.locator('#destination').selectOption({ label: 'Loom' });
  await page.locator('#add-to-queue').click();
  await page.locator('#queue .job', { hasText: 'waits for you' }).waitFor();
  for (const at of [0, 1, 2, 4, 5, 6]) await boxes.nth(at).check();
  await page.locator('#add-to-queue').click();
  await eventually('something is half done', async () => {
    const values = await page.locator('#queue progress[value]').evaluateAll((bars) => bars.map((bar) => bar.value));
    return values.some((value) => value > 30 && value < 80);
  });
  await page.goto(app);
  await page.getByText('Live', { exact: true }).waitFor();
  await eventually('progress is shown', async () => (await page.locator('#queue progress[value]').count()) > 0);
  await picture('meetings');

  await eventually('one is delivered', async () => (await page.locator('.meetings .badge.delivered').count()) > 0);
  await page.locator('.meetings > li', { has: page.locator('.badge.delivered') }).first().locator('.title').click();
  await page.locator('#files a').first().waitFor();
  await picture('meeting');

  await page.emulateMedia({ colorScheme: 'dark' });
  await page.setViewportSize({ width: 390, height: 760 });
  await page.goto(`${app}/queue`);
  await picture('queue-phone');
} finally {
  await close();
}
