// A tus server for tests: prints its port, keeps uploads in the folder it is given, ends when its input does.
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const server = new Server({ path: "/files", datastore: new FileStore({ directory: process.argv[2] }) });
const listening = server.listen({ host: "127.0.0.1", port: 0 }, () => console.log(listening.address().port));
process.stdin.on("end", () => process.exit(0)).resume();
