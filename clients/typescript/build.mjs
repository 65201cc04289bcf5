// Builds dist/ for npm, and the one file that the server serves as /client.js (or another place, given as an argument).
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

// Members that nobody outside sees, that are in no JSON and in no text of the code, and that no object of the platform has.
const MANGLED = /^_[a-z]|^(adopt|closed|dirty|edits|hand|load|nudge|open|put|rebase|remove|restore|send|show|wait|write)$/;

// `this.#name` becomes `this._name`, whose name can be made shorter than any of `#`.
const shorterPrivates = {
  name: "shorter-privates",
  setup({ onLoad }) {
    onLoad({ filter: /src\/\w+\.ts$/ }, ({ path }) => ({
      contents: readFileSync(path, "utf8").replace(/(\bthis\.|^ +(?:(?:readonly|async|get) )*)#(?=\w)/gm, "$1_"),
      loader: "ts",
    }));
  },
};

rmSync(here("dist"), { recursive: true, force: true });
execFileSync(process.execPath, [here("node_modules/typescript/bin/tsc"), "-p", here(".")], { stdio: "inherit" });
await build({
  entryPoints: [here("src/index.ts")],
  outfile: process.argv[2] ?? here("../../src/chatstate/http/client.js"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  plugins: [shorterPrivates],
  mangleProps: MANGLED,
  tsconfigRaw: { compilerOptions: { useDefineForClassFields: false } },
  define: { CHATSTATE_SERVED: "true" },
  banner: { js: "/* chatstate, MIT licence */" },
});
