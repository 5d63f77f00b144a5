// A client with the stock SDK that is driven step by step: a JSON command in each line of the input, and in each line of
// the output an answer to one, or an event.

import { createInterface } from "node:readline";

import { EventSource } from "eventsource";
import PocketBase, { BaseAuthStore } from "pocketbase";

// Node has none; browsers do.
globalThis.EventSource ??= EventSource;

const pb = new PocketBase(process.env.POCKETFLEET_URL, new BaseAuthStore());
pb.autoCancellation(false);

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const commands = {
  signIn: ({ email, password }) => pb.collection("users").authWithPassword(email, password),
  subscribe: async ({ collection }) => {
    await pb.realtime.subscribe("PB_CONNECT", () => say({ connected: true }));
    await pb.collection(collection).subscribe("*", (event) => say({ event: event.action, title: event.record.title }));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { name, ...rest } = JSON.parse(line);
  try {
    await commands[name](rest);
    say({ done: name });
  } catch (error) {
    say({ failed: name, why: String(error?.originalError ?? error) });
  }
}
process.exit(0);
