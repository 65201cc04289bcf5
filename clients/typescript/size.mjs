// The size budget of the core: /client.js, gzipped.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const BUDGET = 6 * 1024;
const file = process.argv[2] ?? new URL("../../src/chatstate/http/client.js", import.meta.url);
const size = gzipSync(readFileSync(file), { level: 9 }).length;
console.log(`${size} of ${BUDGET} bytes`);
if (size > BUDGET) process.exit(1);
