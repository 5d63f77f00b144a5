// The stock PocketBase SDK, unmodified, with the address of a tenant as its base URL: a workspace of several people and
// an app with users of its own, by path and by host. The server has to run with `server.domain = "fleet.example"` and
// with templates whose notes have a protected file `secret`.
//
//   POCKETFLEET_URL=http://127.0.0.1:3000 node --test workspaces.test.mjs

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { randomBytes } from "node:crypto";
import dns from "node:dns";
import { before, describe, test } from "node:test";

import { EventSource } from "eventsource";
import PocketBase, { BaseAuthStore, ClientResponseError } from "pocketbase";

// Node has none; browsers do.
globalThis.EventSource ??= EventSource;

const url = process.env.POCKETFLEET_URL;
assert.ok(url, "POCKETFLEET_URL must name the running server");
const password = "correct horse battery";
const mark = randomBytes(4).toString("hex");
const [team, app] = [`team-${mark}`, `daily-${mark}`];
const host = (slug) => `http://${slug}.fleet.example:${new URL(url).port}`;

// What a wildcard entry in the DNS would do.
const { lookup } = dns;
dns.lookup = (name, options, done) =>
  name.endsWith(".fleet.example") ? lookup("127.0.0.1", options, done) : lookup(name, options, done);

function client(base) {
  const pb = new PocketBase(base, new BaseAuthStore());
  pb.autoCancellation(false);
  return pb;
}

/** A client of somebody at some address, signed in there. */
async function at(base, email) {
  const pb = client(base);
  await pb.collection("users").authWithPassword(email, password);
  return pb;
}

/** An account, made at home. */
async function person(name) {
  const email = `${name}-${mark}@example.com`;
  const account = await client(url).collection("users").create({ email, password, passwordConfirm: password, name });
  return { email, id: account.id };
}

/** The error that a call ends with, in the SDK's own class and with the expected status. */
async function refusal(call, status) {
  const error = await call.then(
    () => assert.fail(`the call succeeded; ${status} was expected`),
    (error) => error,
  );
  assert.ok(error instanceof ClientResponseError, `not an error of the SDK: ${error}`);
  assert.equal(error.status, status, JSON.stringify(error.response));
  return error;
}

/** Polls until `look` gives something. */
async function eventually(what, look) {
  const deadline = Date.now() + 45_000;
  while (Date.now() < deadline) {
    const found = await look();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail(`not in time: ${what}`);
}

const check = (name, body) => test(name, { timeout: 60_000 }, body);

describe("the stock SDK at a tenant's address", { concurrency: false }, () => {
  let ada;
  let bob;
  let eve;
  let home;
  before(async () => {
    [ada, bob, eve] = [await person("ada"), await person("bob"), await person("eve")];
    home = await at(url, ada.email);
    const make = (body) => home.send("/api/v1/tenants", { method: "POST", body });
    await make({ name: "Team", slug: team });
    await make({ name: "Daily", slug: app, identity: "own", template: "hosted" });
    for (const [who, role] of [[bob, "member"], [eve, "guest"]]) {
      const invited = await home.send(`/api/v1/tenants/${team}/invitations`, { method: "POST", body: { role } });
      const joined = await at(url, who.email);
      await joined.send("/api/v1/invitations/accept", { method: "POST", body: { token: invited.token } });
    }
  });

  for (const [mode, base] of [["path", `${url}/t/${team}`], ["host", host(team)]]) {
    describe(`a workspace by ${mode}`, () => {
      check("signs in with the account and stays signed in", async () => {
        assert.equal((await client(base).health.check()).code, 200);
        const pb = await at(base, bob.email);
        assert.equal(pb.authStore.record.id, bob.id);
        await pb.collection("users").authRefresh();
        const members = await pb.collection("users").getFullList({ sort: "name" });
        assert.deepEqual(members.map((one) => one.member_role).sort(), ["guest", "member", "owner"]);
        assert.equal((await pb.collection("users").getOne(ada.id)).member_role, "owner");
        await refusal(pb.collection("users").update(ada.id, { name: "not mine" }), 404);
        assert.equal((await pb.collection("users").update(bob.id, { name: "Bob B." })).name, "Bob B.");
        await refusal(client(base).collection("users").authWithPassword(bob.email, "wrong"), 400);
      });

      check("signs up, which makes nobody a member", async () => {
        const email = `new-${mode}-${mark}@example.com`;
        await client(base).collection("users").create({ email, password, passwordConfirm: password, name: "new" });
        const pb = await at(base, email);
        await refusal(pb.collection("notes").getList(1, 1), 404);
        await refusal(client(base).collection("notes").getList(1, 1), 401);
      });

      check("shares records among members and lets guests read", async () => {
        const [one, other, guest] = [await at(base, ada.email), await at(base, bob.email), await at(base, eve.email)];
        const notes = one.collection("notes");
        const made = await notes.create({ title: `by ${mode}`, tags: ["ü"], author: ada.id });
        const read = await other.collection("notes").getOne(made.id, { expand: "author" });
        assert.deepEqual([read.title, read.tags, read.expand.author.id], [`by ${mode}`, ["ü"], ada.id]);
        assert.equal((await other.collection("notes").update(made.id, { title: "changed" })).title, "changed");
        assert.equal((await guest.collection("notes").getOne(made.id)).title, "changed");
        await refusal(guest.collection("notes").update(made.id, { title: "no" }), 403);
        await refusal(guest.collection("notes").create({ title: "no", author: eve.id }), 403);
        await refusal(other.collection("notes").delete(made.id), 404);
        assert.equal((await home.collection("notes").getFullList({ filter: `id = "${made.id}"` })).length, 0);
        assert.equal(await notes.delete(made.id), true);
      });

      check("runs a batch as one transaction", async () => {
        const pb = await at(base, ada.email);
        const kept = await pb.collection("notes").create({ title: "keep", author: ada.id });
        const batch = pb.createBatch();
        batch.collection("notes").create({ title: "made in a batch", author: ada.id });
        batch.collection("notes").update(kept.id, { title: "kept" });
        assert.deepEqual((await batch.send()).map((answer) => answer.status), [200, 200]);
        const broken = pb.createBatch();
        broken.collection("notes").create({ title: `never ${mode}`, author: ada.id });
        broken.collection("notes").create({ title: "" });
        await refusal(broken.send(), 400);
        await refusal(pb.collection("notes").getFirstListItem(`title = "never ${mode}"`), 404);
      });

      check("shows public files to everybody and protected ones with a token", async () => {
        const pb = await at(base, bob.email);
        const note = await pb.collection("notes").create({
          title: "files",
          author: bob.id,
          attachments: [new File(["for all"], "a.txt")],
          secret: new File(["for members"], "s.txt"),
        });
        const get = async (address) => {
          const answer = await fetch(address);
          return [answer.status, await answer.text()];
        };
        const open = pb.files.getURL(note, note.attachments[0]);
        assert.ok(open.startsWith(`${base}/api/files/`));
        assert.deepEqual(await get(open), [200, "for all"]);
        const closed = pb.files.getURL(note, note.secret);
        assert.equal((await get(closed))[0], 404);
        const guest = await at(base, eve.email);
        for (const who of [pb, guest]) {
          const token = await who.files.getToken();
          assert.deepEqual(await get(who.files.getURL(note, note.secret, { token })), [200, "for members"]);
        }
        const stranger = await at(url, (await person(`file-${mode}`)).email);
        const token = await stranger.files.getToken();
        assert.equal((await get(pb.files.getURL(note, note.secret, { token })))[0], 404);
      });

      check("hears of each other's writes", async () => {
        const [one, other] = [await at(base, ada.email), await at(base, bob.email)];
        const heard = { one: [], other: [] };
        await one.collection("notes").subscribe("*", (event) => heard.one.push(event.record.title));
        await other.collection("notes").subscribe("*", (event) => heard.other.push(event.record.title));
        try {
          await one.collection("notes").create({ title: "from one", author: ada.id });
          await other.collection("notes").create({ title: "from other", author: bob.id });
          await eventually("both events", () => heard.one.length >= 2 && heard.other.length >= 2);
          // PocketBase sends each event on its own: two that follow closely may come in either order.
          const both = ["from one", "from other"];
          assert.deepEqual({ one: heard.one.sort(), other: heard.other.sort() }, { one: both, other: both });
        } finally {
          await one.realtime.unsubscribe();
          await other.realtime.unsubscribe();
        }
      });
    });
  }

  check("needs a token for every file at home", async () => {
    const note = await home.collection("notes").create({ title: "home", attachments: [new File(["mine"], "m.txt")] });
    const address = home.files.getURL(note, note.attachments[0]);
    assert.equal((await fetch(address)).status, 404);
    const token = await home.files.getToken();
    const answer = await fetch(home.files.getURL(note, note.attachments[0], { token }));
    assert.deepEqual([answer.status, await answer.text()], [200, "mine"]);
  });

  for (const [mode, base] of [["path", `${url}/t/${app}`], ["host", host(app)]]) {
    check(`signs up and in at an app with users of its own by ${mode}`, async () => {
      const visitor = async (name) => {
        const pb = client(base);
        const email = `${name}-${mode}-${mark}@example.com`;
        const users = pb.collection("users");
        const made = await users.create({ email, password, passwordConfirm: password, name });
        const answer = await users.authWithPassword(email, password);
        assert.equal(answer.record.id, made.id);
        return pb;
      };
      const [zoe, yan] = [await visitor("zoe"), await visitor("yan")];
      await refusal(client(base).collection("users").authWithPassword(ada.email, password), 400);
      await zoe.collection("users").authRefresh();
      const author = zoe.authStore.record.id;
      await refusal(client(base).collection("posts").create({ title: "nobody's", author }), 401);
      await refusal(yan.collection("posts").create({ title: "not Yan's", author }), 400);
      await refusal(yan.collection("users").getOne(author), 404);

      const heard = { zoe: [], nobody: [] };
      const nobody = client(base);
      await zoe.collection("posts").subscribe("*", (event) => heard.zoe.push(event.record.title));
      await nobody.collection("posts").subscribe("*", (event) => heard.nobody.push(event.record.title));
      try {
        const batch = zoe.createBatch();
        batch.collection("posts").create({ title: `draft by ${mode}`, author });
        batch.collection("posts").create({ title: `public by ${mode}`, author, published: true });
        await batch.send();
        await eventually("the events", () => heard.zoe.length >= 2 && heard.nobody.length >= 1);
        assert.deepEqual(heard.zoe.sort(), [`draft by ${mode}`, `public by ${mode}`]);
        assert.deepEqual(heard.nobody, [`public by ${mode}`]);
        const titles = async (pb) =>
          (await pb.collection("posts").getFullList({ filter: `title ~ "by ${mode}"` })).map((post) => post.title).sort();
        assert.deepEqual(await titles(zoe), [`draft by ${mode}`, `public by ${mode}`]);
        assert.deepEqual(await titles(nobody), [`public by ${mode}`]);
        // A token of the app is nothing elsewhere, and ours is nothing there.
        const elsewhere = client(url);
        elsewhere.authStore.save(zoe.authStore.token, zoe.authStore.record);
        await refusal(elsewhere.collection("notes").getList(1, 1), 401);
        const foreign = client(base);
        foreign.authStore.save(home.authStore.token, home.authStore.record);
        await refusal(foreign.collection("users").getList(1, 1), 401);
      } finally {
        await zoe.realtime.unsubscribe();
        await nobody.realtime.unsubscribe();
      }
    });
  }
});
