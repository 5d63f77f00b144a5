// Signing in through another service in a window of its own, as browsers do it with the stock SDK: the SDK waits on its
// realtime connection, the window follows the service's redirects, and its last page is pocketfleet's.
//
// The server's hosted apps have to know the service as well.
//
//   POCKETFLEET_URL=http://127.0.0.1:3000 node --test oauth2.test.mjs

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";

import { EventSource } from "eventsource";
import PocketBase, { BaseAuthStore } from "pocketbase";

// Node has none; browsers do.
globalThis.EventSource ??= EventSource;

const url = process.env.POCKETFLEET_URL;
assert.ok(url, "POCKETFLEET_URL must name the running server");

/** Signs in at this address; what came of it, and the window's last page. */
async function signIn(base) {
  const pb = new PocketBase(base, new BaseAuthStore());
  pb.autoCancellation(false);
  let window;
  const urlCallback = async (address) => {
    const answer = await fetch(address);
    window = { address: answer.url, status: answer.status, html: await answer.text() };
  };
  const answer = await pb.collection("users").authWithOAuth2({ provider: "oidc", urlCallback });
  return { pb, answer, window };
}

/** Writes and hears of it, after the sign-in that waited on a connection of the same client. */
async function hears(pb, collection, author) {
  const heard = [];
  await pb.collection(collection).subscribe("*", (event) => heard.push(event.record.title));
  await pb.collection(collection).create({ title: "heard", author });
  const deadline = Date.now() + 30_000;
  while (heard.length === 0 && Date.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(heard, ["heard"]);
  await pb.realtime.unsubscribe();
}

const check = (name, body) => test(name, { timeout: 60_000 }, body);

check("a window signs in at home", async () => {
  const { pb, answer, window } = await signIn(url);
  assert.equal(answer.meta.isNew, true);
  assert.ok(pb.authStore.isValid);
  assert.deepEqual([window.status, new URL(window.address).pathname], [200, "/api/oauth2-redirect"]);
  assert.match(window.html, /close/i);
  await pb.collection("notes").create({ title: "through a window" });
  assert.equal((await pb.collection("notes").getList(1, 5)).totalItems, 1);
  const sessions = await pb.send("/api/v1/auth/sessions", {});
  assert.equal((sessions.items ?? sessions).length, 1);
});

check("a window signs in at a workspace's address", async () => {
  const { pb: home } = await signIn(url);
  const slug = `team-${randomBytes(4).toString("hex")}`;
  await home.send("/api/v1/tenants", { method: "POST", body: { name: "Team", slug } });
  const { pb, answer, window } = await signIn(`${url}/t/${slug}`);
  assert.equal(answer.meta.isNew, false);
  assert.equal(answer.record.id, home.authStore.record.id);
  assert.deepEqual([window.status, new URL(window.address).pathname], [200, `/t/${slug}/api/oauth2-redirect`]);
  const author = answer.record.id;
  await pb.collection("notes").create({ title: "in the workspace", author });
  assert.equal((await pb.collection("users").getOne(author)).member_role, "owner");
  await hears(pb, "notes", author);
});

check("a window signs in at an app with users of its own", async () => {
  const { pb: home } = await signIn(url);
  const slug = `daily-${randomBytes(4).toString("hex")}`;
  const body = { name: "Daily", slug, identity: "own", template: "hosted" };
  await home.send("/api/v1/tenants", { method: "POST", body });
  const { pb, answer } = await signIn(`${url}/t/${slug}`);
  assert.equal(answer.meta.isNew, true, "somebody else than the account with this address");
  assert.notEqual(answer.record.id, home.authStore.record.id);
  await hears(pb, "posts", answer.record.id);
});
