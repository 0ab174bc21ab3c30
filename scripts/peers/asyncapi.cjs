// Parses FOLDER/asyncapi.json and checks FOLDER/messages.json against the schemas of its messages.
const fs = require("fs");
const { Parser } = require("@asyncapi/parser");
const Ajv = require("ajv").default;
const formats = require("ajv-formats").default;

const [folder] = process.argv.slice(2);
const text = fs.readFileSync(`${folder}/asyncapi.json`, "utf8");

async function main() {
  const { document, diagnostics } = await new Parser().parse(text);
  const errors = diagnostics.filter((diagnostic) => diagnostic.severity === 0);
  for (const { message, path } of errors) console.error(path.join("."), message);
  if (errors.length || !document) process.exit(1);
  const ajv = new Ajv({ strict: false });
  formats(ajv);
  const { event, deadLetter } = JSON.parse(text).components.messages;
  for (const message of JSON.parse(fs.readFileSync(`${folder}/messages.json`))) {
    const schema = message.is_dead ? deadLetter : event;
    for (const part of ["headers", "payload"]) {
      if (ajv.validate(schema[part], message[part])) continue;
      console.error(part, ajv.errorsText(), JSON.stringify(message[part]));
      process.exit(1);
    }
  }
}

main();
