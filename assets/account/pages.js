// Sends the token from the address, with what was typed, to the call that the page's form names.
"use strict";

const form = document.querySelector("form");
const message = document.getElementById("message");
const token = new URLSearchParams(location.hash.slice(1)).get("token");
// The token is good for a while and must not stay in the history.
history.replaceState(null, "", location.pathname);

function say(text, isBad) {
  message.textContent = text;
  message.className = isBad ? "bad" : "";
}

function complaint(status, answer) {
  const fields = (answer && answer.data) || {};
  if (fields.token) {
    return "This link is no longer valid. Ask for a new mail.";
  }
  const first = Object.values(fields).find((field) => field && field.message);
  if (first) {
    return first.message;
  }
  return status === 429 ? "Too many attempts. Wait a moment and try again." : "That did not work. Try again later.";
}

if (!token) {
  form.hidden = true;
  say("This link is not complete. Open it from the mail again.", true);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  say("");
  try {
    const body = { token, ...Object.fromEntries(new FormData(form)) };
    const answer = await fetch(`../api/collections/users/${form.dataset.call}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (answer.ok) {
      form.hidden = true;
      say(form.dataset.done);
      return;
    }
    say(complaint(answer.status, await answer.json().catch(() => null)), true);
  } catch {
    say("The server cannot be reached. Try again later.", true);
  }
  button.disabled = false;
});
