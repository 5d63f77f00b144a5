// The stock PocketBase SDK, unmodified, with pocketfleet as its base URL: the ways to sign in beyond a password, and
// what goes by mail. Mails appear as files in MAIL_FOLDER, named `<number>-<recipient>`.
//
//   POCKETFLEET_URL=http://127.0.0.1:3000 MAIL_FOLDER=/tmp/mails node --test accounts.test.mjs

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFile, readdir } from "node:fs/promises";
import { describe, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { createContext, runInContext } from "node:vm";

import PocketBase, { BaseAuthStore, ClientResponseError } from "pocketbase";

const url = process.env.POCKETFLEET_URL;
const folder = process.env.MAIL_FOLDER;
assert.ok(url && folder, "POCKETFLEET_URL and MAIL_FOLDER must be set");
const password = "correct horse battery";

function client() {
  const pb = new PocketBase(url, new BaseAuthStore());
  pb.autoCancellation(false);
  return pb;
}

/** Signs a new person up, not in: here a second factor may be asked for. */
async function person(name) {
  const email = `${name}-${randomBytes(6).toString("hex")}@example.com`;
  const pb = client();
  await pb.collection("users").create({ email, password, passwordConfirm: password, name });
  return { pb, users: pb.collection("users"), email };
}

/** The mail to this address with this number, from 1. */
async function mailTo(email, number) {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const names = (await readdir(folder)).filter((name) => !name.startsWith("draft-") && name.endsWith(`-${email}`));
    if (names.length >= number) {
      return readFile(`${folder}/${names.sort()[number - 1]}`, "utf8");
    }
    assert.ok(Date.now() < deadline, `no mail ${number} to ${email}`);
    await setTimeout(20);
  }
}

const tokenOf = (mail) => mail.match(/#token=([\w.-]+)/)[1];
const otpOf = (mail) => mail.match(/one-time password is: (\d+)/)[1];

/** Opens the page of a link with as much of a browser as its script needs. */
async function open(link) {
  const address = new URL(link);
  const html = await (await fetch(address)).text();
  const script = new URL(html.match(/<script src="([^"]+)"/)[1], address);
  const dataset = { call: html.match(/data-call="([^"]+)"/)[1], done: html.match(/data-done="([^"]+)"/)[1] };
  const page = { message: { textContent: "" }, path: address.pathname, button: { disabled: false }, fields: {} };
  const form = {
    dataset,
    hidden: false,
    querySelector: () => page.button,
    addEventListener: (name, listener) => (page[name] = listener),
  };
  page.form = form;
  runInContext(await (await fetch(script)).text(), createContext({
    URLSearchParams,
    document: { querySelector: () => form, getElementById: () => page.message },
    location: { hash: address.hash, pathname: address.pathname },
    history: { replaceState: (state, title, path) => (page.shown = path) },
    FormData: class {
      *[Symbol.iterator]() {
        yield* Object.entries(page.fields);
      }
    },
    fetch: (path, options) => fetch(new URL(path, address), options),
  }));
  page.press = (fields) => {
    page.fields = fields;
    return page.submit({ preventDefault() {} });
  };
  return page;
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

const check = (name, body) => test(name, { timeout: 60_000 }, body);

describe("the stock SDK", { concurrency: false }, () => {
  check("lists the ways to sign in", async () => {
    const methods = await client().collection("users").listAuthMethods();
    assert.deepEqual([methods.password.enabled, methods.otp.enabled, methods.mfa.enabled], [true, true, true]);
    assert.deepEqual(methods.oauth2.providers.map((one) => one.name), ["oidc"]);
  });

  check("signs in with a one-time password", async () => {
    const { pb, users, email } = await person("otp");
    const { otpId } = await users.requestOTP(email);
    await refusal(users.authWithOTP(otpId, "00000000"), 400);
    const answer = await users.authWithOTP(otpId, otpOf(await mailTo(email, 1)));
    assert.equal(answer.record.email, email);
    assert.ok(pb.authStore.isValid);
    await pb.collection("notes").create({ title: "by one-time password" });
    await users.authRefresh();
    assert.equal((await pb.collection("notes").getList(1, 5)).totalItems, 1);
  });

  check("signs in with two factors", async () => {
    const { pb, users, email } = await person("mfa");
    await users.requestVerification(email);
    await users.confirmVerification(tokenOf(await mailTo(email, 1)));
    // The tests' server asks those for two factors whose name is "mfa".
    const first = await refusal(users.authWithPassword(email, password), 401);
    const { mfaId } = first.response;
    assert.equal(typeof mfaId, "string");
    assert.ok(!pb.authStore.isValid);
    const { otpId } = await users.requestOTP(email);
    await users.authWithOTP(otpId, otpOf(await mailTo(email, 2)), { mfaId });
    await pb.collection("notes").create({ title: "by two factors" });
  });

  check("verifies an address", async () => {
    const { pb, users, email } = await person("verify");
    await users.authWithPassword(email, password);
    assert.equal(pb.authStore.record.verified, false);
    assert.equal(await users.requestVerification(email), true);
    assert.equal(await users.requestVerification(`nobody-${email}`), true);
    assert.equal(await users.confirmVerification(tokenOf(await mailTo(email, 1))), true);
    // The SDK itself notes the change in its store.
    assert.equal(pb.authStore.record.verified, true);
    assert.equal((await users.getOne(pb.authStore.record.id)).verified, true);
  });

  check("resets a password", async () => {
    const { pb, users, email } = await person("reset");
    await users.authWithPassword(email, password);
    assert.equal(await users.requestPasswordReset(email), true);
    const token = tokenOf(await mailTo(email, 1));
    assert.equal(await users.confirmPasswordReset(token, "another horse", "another horse"), true);
    await refusal(pb.collection("notes").getList(1, 1), 401);
    await refusal(users.authWithPassword(email, password), 400);
    await users.authWithPassword(email, "another horse");
    await refusal(users.confirmPasswordReset(token, "third horse", "third horse"), 400);
  });

  check("meets pages that do what their mails promise", async () => {
    const { users, email } = await person("pages");
    const linkOf = (mail) => mail.match(/class="btn" href="([^"]+)"/)[1];
    await users.requestVerification(email);
    const verify = await open(linkOf(await mailTo(email, 1)));
    assert.equal(verify.shown, "/account/verify", "the token leaves the address at once");
    await verify.press({});
    assert.match(verify.message.textContent, /is verified/);

    await users.requestPasswordReset(email);
    const link = linkOf(await mailTo(email, 2));
    const reset = await open(link);
    await reset.press({ password: "one horse", passwordConfirm: "another horse" });
    assert.match(reset.message.textContent, /match/i);
    assert.ok(!reset.button.disabled && !reset.form.hidden);
    await reset.press({ password: "paged horse", passwordConfirm: "paged horse" });
    assert.match(reset.message.textContent, /password is set/);
    assert.ok(reset.form.hidden);
    await users.authWithPassword(email, "paged horse");

    const again = await open(link);
    await again.press({ password: "third horse", passwordConfirm: "third horse" });
    assert.match(again.message.textContent, /no longer valid/);
    await users.requestEmailChange(`paged-${email}`);
    const change = await open(linkOf(await mailTo(`paged-${email}`, 1)));
    await change.press({ password: "wrong horse" });
    assert.equal(change.message.className, "bad");
    await change.press({ password: "paged horse" });
    assert.match(change.message.textContent, /address is changed/);
    const broken = await open(`${url}/account/verify`);
    assert.ok(broken.form.hidden);
  });

  check("changes an address", async () => {
    const { pb, users, email } = await person("change");
    await users.authWithPassword(email, password);
    const { id } = pb.authStore.record;
    const fresh = `new-${email}`;
    assert.equal(await users.requestEmailChange(fresh), true);
    assert.equal(await users.confirmEmailChange(tokenOf(await mailTo(fresh, 1)), password), true);
    // The SDK itself forgets the sign-in that has just ended.
    assert.ok(!pb.authStore.isValid);
    assert.equal((await users.authWithPassword(fresh, password)).record.id, id);
  });

  check("signs in with a code of another service", async () => {
    const pb = client();
    const users = pb.collection("users");
    const { oauth2 } = await users.listAuthMethods();
    const redirect = `${url}/api/oauth2-redirect`;
    const [service] = oauth2.providers;
    const answer = await fetch(service.authURL + encodeURIComponent(redirect), { redirect: "manual" });
    const code = new URL(answer.headers.get("location")).searchParams.get("code");
    const made = await users.authWithOAuth2Code(service.name, code, service.codeVerifier, redirect, { name: "Chosen" });
    assert.deepEqual([made.meta.isNew, made.record.name], [true, "Chosen"]);
    await pb.collection("notes").create({ title: "by another service" });
    await refusal(users.authWithOAuth2Code(service.name, code, service.codeVerifier, redirect), 400);
  });
});
