// The stock PocketBase SDK, unmodified, with pocketfleet as its base URL. Nothing here knows that there is more than
// one PocketBase behind it, except the tests of two people who must never see each other's data.
//
//   POCKETFLEET_URL=http://127.0.0.1:3000 node --test sdk.test.mjs

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { randomBytes } from "node:crypto";
import { after, before, describe, test } from "node:test";

import PocketBase, { BaseAuthStore, ClientResponseError } from "pocketbase";

const url = process.env.POCKETFLEET_URL;
assert.ok(url, "POCKETFLEET_URL must name the running server");
const password = "correct horse battery";
let passed = 0;
let failed = 0;

function client() {
  const pb = new PocketBase(url, new BaseAuthStore());
  pb.autoCancellation(false);
  return pb;
}

/** Signs a new person up and in. */
async function person(name) {
  const pb = client();
  const email = `${name}-${randomBytes(6).toString("hex")}@example.com`;
  const account = await pb.collection("users").create({ email, password, passwordConfirm: password, name });
  await pb.collection("users").authWithPassword(email, password);
  return { pb, email, account };
}

/** The error that a call ends with, in the SDK's own class and with the expected status. */
async function refusal(call, status) {
  const error = await call.then(
    () => assert.fail(`the call succeeded; ${status} was expected`),
    (error) => error,
  );
  assert.ok(error instanceof ClientResponseError, `not an error of the SDK: ${error}`);
  assert.equal(error.status, status, JSON.stringify(error.response));
  // The SDK itself makes the 404 of getFirstListItem, with `code` in place of `status`.
  assert.equal(error.response.status ?? error.response.code, status);
  assert.equal(typeof error.response.message, "string");
  assert.equal(typeof error.response.data, "object");
  return error;
}

const newId = () => randomBytes(8).toString("hex").slice(0, 15);

/** Defines a test and counts how it ended, for the closing line. */
function check(name, body) {
  test(name, { timeout: 60_000 }, async () => {
    try {
      await body();
      passed += 1;
    } catch (error) {
      failed += 1;
      throw error;
    }
  });
}

describe("the stock SDK", { concurrency: false }, () => {
  let ada;
  let bob;
  before(async () => {
    ada = await person("ada");
    bob = await person("bob");
  });
  after(() => console.log(`sdk: ${passed} passed, ${failed} failed`));

  check("reads the health of the server", async () => {
    const health = await client().health.check();
    assert.equal(health.code, 200);
  });

  describe("accounts", () => {
    check("signs up and in", async () => {
      assert.equal(ada.account.name, "ada");
      assert.equal(ada.account.collectionName, "users");
      assert.ok(ada.pb.authStore.isValid);
      assert.equal(ada.pb.authStore.record.id, ada.account.id);
      assert.equal(ada.pb.authStore.record.email, ada.email);
    });

    check("refuses a wrong password and a taken address", async () => {
      const wrong = await refusal(client().collection("users").authWithPassword(ada.email, "not the password"), 400);
      assert.deepEqual(wrong.response.data, {});
      const body = { email: ada.email, password, passwordConfirm: password };
      const taken = await refusal(client().collection("users").create(body), 400);
      assert.equal(taken.response.data.email.code, "validation_not_unique");
    });

    check("refreshes its sign-in and goes on with the new token", async () => {
      const answer = await ada.pb.collection("users").authRefresh();
      assert.equal(answer.record.id, ada.account.id);
      assert.equal(ada.pb.authStore.token, answer.token);
      await ada.pb.collection("notes").getList(1, 1);
    });

    check("reads and changes its own account", async () => {
      const users = ada.pb.collection("users");
      assert.equal((await users.getOne(ada.account.id)).email, ada.email);
      assert.equal((await users.update(ada.account.id, { name: "Ada L." })).name, "Ada L.");
      assert.equal((await users.getOne(ada.account.id)).name, "Ada L.");
      await refusal(users.update(ada.account.id, { role: "admin" }), 404);
    });
  });

  describe("records", () => {
    check("creates, reads, changes and deletes", async () => {
      const notes = ada.pb.collection("notes");
      const made = await notes.create({ title: "First", body: "Hello", tags: ["a", "ü"] });
      assert.equal(made.id.length, 15);
      const read = await notes.getOne(made.id);
      assert.deepEqual([read.title, read.body, read.tags], ["First", "Hello", ["a", "ü"]]);
      assert.equal((await notes.update(made.id, { title: "Second" })).title, "Second");
      assert.deepEqual((await notes.getOne(made.id, { fields: "title" })), { title: "Second" });
      assert.equal(await notes.delete(made.id), true);
      await refusal(notes.getOne(made.id), 404);
    });

    check("filters, sorts, expands and pages", async () => {
      const notes = ada.pb.collection("notes");
      const notebook = await ada.pb.collection("notebooks").create({ name: "Work & more" });
      for (let n = 1; n <= 7; n += 1) {
        await notes.create({ title: `page ${n}`, body: n % 2 ? "odd" : "even", notebook: notebook.id });
      }
      const filter = ada.pb.filter("title ~ {:title} && body = {:body}", { title: "page", body: "odd" });
      const odd = await notes.getList(1, 3, { filter, sort: "-title", expand: "notebook" });
      assert.deepEqual([odd.page, odd.perPage, odd.totalItems, odd.totalPages], [1, 3, 4, 2]);
      assert.deepEqual(odd.items.map((note) => note.title), ["page 7", "page 5", "page 3"]);
      assert.equal(odd.items[0].expand.notebook.name, "Work & more");
      const rest = await notes.getList(2, 3, { filter, sort: "-title" });
      assert.deepEqual(rest.items.map((note) => note.title), ["page 1"]);

      const all = await notes.getFullList({ batch: 2, filter: `notebook.name = "Work & more"`, sort: "title" });
      assert.equal(all.length, 7);
      assert.equal((await notes.getFirstListItem('title = "page 4"')).body, "even");
      await refusal(notes.getFirstListItem('title = "page 99"'), 404);
    });

    check("runs a batch as one transaction", async () => {
      const notes = ada.pb.collection("notes");
      const [kept, dropped] = [await notes.create({ title: "keep" }), await notes.create({ title: "drop" })];
      const batch = ada.pb.createBatch();
      batch.collection("notes").create({ title: "made in a batch" });
      batch.collection("notes").update(kept.id, { title: "kept" });
      batch.collection("notes").delete(dropped.id);
      const answers = await batch.send();
      assert.deepEqual(answers.map((answer) => answer.status), [200, 200, 204]);
      assert.equal((await notes.getOne(kept.id)).title, "kept");
      await refusal(notes.getOne(dropped.id), 404);

      const broken = ada.pb.createBatch();
      broken.collection("notes").create({ title: "never stored" });
      broken.collection("notes").create({ title: "" });
      const error = await refusal(broken.send(), 400);
      assert.equal(error.response.data.requests[1].response.data.title.code, "validation_required");
      await refusal(notes.getFirstListItem('title = "never stored"'), 404);
    });

    check("answers 20 requests at once, each with its own record", async () => {
      const notes = ada.pb.collection("notes");
      const titles = Array.from({ length: 20 }, (_, n) => `at once ${n}`);
      const made = await Promise.all(titles.map((title) => notes.create({ title })));
      const read = await Promise.all(made.map((note) => notes.getOne(note.id)));
      assert.deepEqual(read.map((note) => note.title), titles);
      assert.equal(new Set(made.map((note) => note.id)).size, 20);
    });

    check("tells errors in PocketBase's own shape", async () => {
      const invalid = await refusal(ada.pb.collection("notes").create({ body: "no title" }), 400);
      assert.equal(invalid.response.data.title.code, "validation_required");
      await refusal(ada.pb.collection("notes").getOne("doesnotexist000"), 404);
      await refusal(ada.pb.collection("nothing").getList(1, 1), 404);

      const left = client();
      left.authStore.save(ada.pb.authStore.token, ada.pb.authStore.record);
      await left.collection("notes").getList(1, 1);
      left.authStore.clear();
      await refusal(left.collection("notes").getList(1, 1), 401);
      left.authStore.save("not.a.token", null);
      await refusal(left.collection("notes").getList(1, 1), 401);
    });
  });

  describe("files", () => {
    const bytes = randomBytes(300_000);
    const download = (pb, note, name) =>
      fetch(pb.files.getURL(note, name), { headers: { Authorization: pb.authStore.token } });

    check("uploads, downloads and deletes", async () => {
      const notes = ada.pb.collection("notes");
      const form = new FormData();
      form.append("title", "with files");
      form.append("attachments", new Blob([bytes]), "noise.bin");
      const note = await notes.create(form);
      assert.equal(note.attachments.length, 1);
      const answer = await download(ada.pb, note, note.attachments[0]);
      assert.equal(answer.status, 200);
      assert.deepEqual(Buffer.from(await answer.arrayBuffer()), bytes);

      const text = new File(["plain"], "plain.txt", { type: "text/plain" });
      const both = await notes.update(note.id, { "attachments+": [text] });
      assert.equal(both.attachments.length, 2);
      assert.equal(await (await download(ada.pb, both, both.attachments[1])).text(), "plain");

      const one = await notes.update(note.id, { "attachments-": [both.attachments[0]] });
      assert.deepEqual(one.attachments, [both.attachments[1]]);
      const gone = await download(ada.pb, note, both.attachments[0]);
      assert.equal(gone.status, 404);
      await gone.arrayBuffer();
    });

    check("answers a range of a file", async () => {
      const note = await ada.pb.collection("notes").create({ title: "range", attachments: [new File([bytes], "r.bin")] });
      const headers = { Authorization: ada.pb.authStore.token, Range: "bytes=1000-1999" };
      const answer = await fetch(ada.pb.files.getURL(note, note.attachments[0]), { headers });
      assert.equal(answer.status, 206);
      assert.deepEqual(Buffer.from(await answer.arrayBuffer()), bytes.subarray(1000, 2000));
    });
  });

  describe("two people", () => {
    check("never see each other's records", async () => {
      const id = newId();
      await ada.pb.collection("notes").create({ id, title: "Ada's secret" });
      const notes = bob.pb.collection("notes");
      assert.equal((await notes.getList(1, 50)).totalItems, 0);
      assert.deepEqual(await notes.getFullList({ filter: 'title ~ "secret"' }), []);
      await refusal(notes.getOne(id), 404);
      await refusal(notes.update(id, { title: "taken over" }), 404);
      await refusal(notes.delete(id), 404);

      await notes.create({ id, title: "Bob's own" });
      assert.equal((await notes.getOne(id)).title, "Bob's own");
      assert.equal((await ada.pb.collection("notes").getOne(id)).title, "Ada's secret");
      assert.equal(await notes.delete(id), true);
      assert.equal((await ada.pb.collection("notes").getOne(id)).title, "Ada's secret");
    });

    check("never see each other's files", async () => {
      const secret = new File(["for Ada only"], "secret.txt");
      const note = await ada.pb.collection("notes").create({ title: "file", attachments: [secret] });
      const path = ada.pb.files.getURL(note, note.attachments[0]);
      for (const headers of [{ Authorization: bob.pb.authStore.token }, {}]) {
        const answer = await fetch(path, { headers });
        assert.ok([401, 404].includes(answer.status), `status ${answer.status}`);
        assert.ok(!(await answer.text()).includes("for Ada only"));
      }
    });

    check("never see or change each other's accounts", async () => {
      const users = bob.pb.collection("users");
      await refusal(users.getOne(ada.account.id), 404);
      await refusal(users.update(ada.account.id, { name: "Bob was here" }), 404);
      assert.notEqual((await ada.pb.collection("users").getOne(ada.account.id)).name, "Bob was here");
    });

    check("are told apart by the token alone", async () => {
      // The record in the store is the client's own claim; only the token decides.
      const mixed = client();
      mixed.authStore.save(bob.pb.authStore.token, ada.pb.authStore.record);
      assert.equal((await mixed.collection("notes").getList(1, 50)).totalItems, 0);
      const query = { user: ada.account.id, tenant: ada.account.id };
      const headers = { "X-Tenant": ada.account.id, "X-User-Id": ada.account.id };
      assert.equal((await bob.pb.collection("notes").getList(1, 50, { query, headers })).totalItems, 0);
    });
  });
});
