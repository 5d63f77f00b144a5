// Realtime through the stock SDK while the instance behind it sleeps and wakes. The server has to run with a short
// idle time, so that it sleeps within the test.
//
//   POCKETFLEET_URL=http://127.0.0.1:3000 node --test realtime.test.mjs

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";

import { EventSource } from "eventsource";
import PocketBase, { BaseAuthStore } from "pocketbase";

// Node has none; browsers do.
globalThis.EventSource ??= EventSource;

const url = process.env.POCKETFLEET_URL;
assert.ok(url, "POCKETFLEET_URL must name the running server");
const password = "correct horse battery";

async function device(email) {
  const pb = new PocketBase(url, new BaseAuthStore());
  pb.autoCancellation(false);
  await pb.collection("users").authWithPassword(email, password);
  return pb;
}

/** Polls until `look` gives something. */
async function eventually(what, look) {
  const deadline = Date.now() + 45_000;
  while (Date.now() < deadline) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail(`not in time: ${what}`);
}

async function asleep() {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  const awake = metrics.match(/^pocketfleet_instances\{state="awake"\} (\d+)$/m);
  return !awake || awake[1] === "0";
}

test("a subscription outlives the sleep of the instance", { timeout: 120_000 }, async () => {
  const email = `rt-${randomBytes(6).toString("hex")}@example.com`;
  const someone = new PocketBase(url, new BaseAuthStore());
  await someone.collection("users").create({ email, password, passwordConfirm: password, name: "rt" });
  const [listener, writer] = [await device(email), await device(email)];
  const notes = writer.collection("notes");
  await notes.create({ title: "before" });

  const all = [];
  const filtered = [];
  let connects = 0;
  await listener.realtime.subscribe("PB_CONNECT", () => (connects += 1));
  const unsubscribe = await listener.collection("notes").subscribe("*", (event) => all.push(event));
  await listener.collection("notes").subscribe("*", (event) => filtered.push(event.record), {
    filter: 'title ~ "special"',
    fields: "id,title",
  });

  for (const round of [1, 2, 3]) {
    await eventually("the instance sleeps", asleep);
    await notes.create({ title: `round ${round}` });
    await eventually("the event", () => all.length >= round);
    assert.deepEqual(
      all.map((event) => [event.action, event.record.title]),
      Array.from({ length: round }, (_, at) => ["create", `round ${at + 1}`]),
    );
  }
  const special = await notes.create({ title: "special" });
  await eventually("the filtered event", () => filtered.length >= 1);
  assert.deepEqual(filtered, [{ id: special.id, title: "special" }]);
  assert.equal(connects, 1, "the stream was never cut");
  await eventually("the event of both", () => all.length >= 4);

  await unsubscribe();
  await notes.create({ title: "special too" });
  await eventually("the filtered event", () => filtered.length >= 2);
  assert.equal(all.length, 4);
  await listener.realtime.unsubscribe();
});
