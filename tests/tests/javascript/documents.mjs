// Reads an account's document, says what is in it, changes it, and writes the change and the document.
// Usage: node documents.mjs PACKAGES DOCUMENT CHANGE CHANGED
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, document, change, changed] = process.argv.slice(2);
const Automerge = createRequire(`${packages}/`)("@automerge/automerge");

const plain = (value) => {
  if (value instanceof Date) return value.getTime();
  if (Automerge.isImmutableString(value)) return value.toString();
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
  }
  return value;
};

const doc = Automerge.load(readFileSync(document));
const said = { values: plain(doc), heads: Automerge.getHeads(doc).slice().sort() };

const edited = Automerge.change(doc, (draft) => {
  draft.losses["from-javascript"] = new Automerge.ImmutableString("c1");
  draft.limits.single = 500;
});
writeFileSync(change, Automerge.getLastLocalChange(edited));
writeFileSync(changed, Automerge.save(edited));
console.log(JSON.stringify(said));
