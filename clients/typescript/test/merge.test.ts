import assert from "node:assert/strict";
import { test } from "node:test";
import { equal } from "../src/json.js";
import { threeWayMerge } from "../src/merge.js";
import { diff } from "../src/patch.js";
import { applied, randomly } from "./random.js";

const a = { id: 1, text: "a" };
const b = { id: 2, text: "b" };
const c = { id: 3, text: "c" };

const CASES: [name: string, base: unknown, mine: unknown, theirs: unknown, merged: unknown][] = [
  ["nothing has changed", { x: 1 }, { x: 1 }, { x: 1 }, { x: 1 }],
  ["mine has", { x: 1 }, { x: 2 }, { x: 1 }, { x: 2 }],
  ["theirs has", { x: 1 }, { x: 1 }, { x: 3 }, { x: 3 }],
  ["both in the same way", { x: 1 }, { x: 2 }, { x: 2 }, { x: 2 }],
  ["a conflict: mine wins", { x: 1 }, { x: 2 }, { x: 3 }, { x: 2 }],
  ["different members", { x: 1, y: 1 }, { x: 2, y: 1 }, { x: 1, y: 3 }, { x: 2, y: 3 }],
  ["deep inside", { o: { x: 1, y: 1 } }, { o: { x: 2, y: 1 } }, { o: { x: 1, y: 3 } }, { o: { x: 2, y: 3 } }],
  ["both add members", {}, { x: 1 }, { y: 2 }, { y: 2, x: 1 }],
  ["I remove, they leave alone", { x: 1, y: 1 }, { y: 1 }, { x: 1, y: 1 }, { y: 1 }],
  ["they remove, I leave alone", { x: 1, y: 1 }, { x: 1, y: 1 }, { y: 1 }, { y: 1 }],
  ["I remove, they change", { x: 1 }, {}, { x: 2 }, { x: 2 }],
  ["they remove, I change", { x: 1 }, { x: 2 }, {}, { x: 2 }],
  ["a member named __proto__", {}, JSON.parse('{"__proto__": 1}'), { y: 2 }, JSON.parse('{"y": 2, "__proto__": 1}')],
  ["null is a value", { x: 1 }, { x: null }, { x: 1, y: 2 }, { x: null, y: 2 }],
  ["nothing was there before", null, { m: [a] }, { m: [b] }, { m: [b, a] }],
  ["messages with ids: both append", { m: [a] }, { m: [a, b] }, { m: [a, c] }, { m: [a, c, b] }],
  ["I edit one, they append", [a, b], [{ ...a, text: "A" }, b], [a, b, c], [{ ...a, text: "A" }, b, c]],
  ["both edit one, in different members", [a], [{ ...a, text: "A" }], [{ ...a, seen: true }], [{ ...a, text: "A", seen: true }]],
  ["both edit the same", [a], [{ ...a, text: "mine" }], [{ ...a, text: "theirs" }], [{ ...a, text: "mine" }]],
  ["I remove one, they append", [a, b], [b], [a, b, c], [b, c]],
  ["they remove one, I append", [a, b], [a, b, c], [b], [b, c]],
  ["I remove one that they edit", [a, b], [b], [{ ...a, text: "A" }, b], [{ ...a, text: "A" }, b]],
  ["they remove one that I edit", [a, b], [{ ...a, text: "A" }, b], [b], [b, { ...a, text: "A" }]],
  ["ids of text and number differ", [], [{ id: "1" }], [{ id: 1 }], [{ id: 1 }, { id: "1" }]],
  ["without ids: both append", ["x"], ["x", "mine"], ["x", "theirs"], ["x", "theirs", "mine"]],
  ["without ids: one alone appends", ["x"], ["x", "mine"], ["x"], ["x", "mine"]],
  ["without ids: both the same", ["x"], ["x", "y"], ["x", "y"], ["x", "y"]],
  ["without ids: I change, they append", ["x"], ["y"], ["x", "theirs"], ["y"]],
  ["two have the same id: no ids", [a], [a, a], [a, b], [a, b, a]],
  ["one has no id: no ids", [a], [a, "x"], [a, b], [a, b, "x"]],
  ["an array and an object", { x: [] }, { x: [1] }, { x: {} }, { x: [1] }],
  ["the whole state is text", "x", "y", "z", "y"],
];

for (const [name, base, mine, theirs, merged] of CASES) {
  test(`merge: ${name}`, () => {
    const before = JSON.stringify([base, mine, theirs]);
    const found = threeWayMerge(base, mine, theirs);
    assert.equal(JSON.stringify(found), JSON.stringify(merged));
    assert.equal(JSON.stringify([base, mine, theirs]), before, "an argument was changed");
  });
}

test("merge: whatever the values, one side alone is taken, and no new message is lost or doubled", () => {
  randomly(2000, (random) => {
    const base = random.chat();
    const mine = random.edited(base);
    const theirs = random.edited(base);
    assert.ok(equal(threeWayMerge(base, mine, base), mine));
    assert.ok(equal(threeWayMerge(base, base, theirs), theirs));
    assert.ok(equal(threeWayMerge(base, mine, mine), mine));
    const merged = threeWayMerge(base, mine, theirs);
    const ids = merged.messages.map(({ id }) => id);
    assert.equal(new Set(ids).size, ids.length);
    const known = new Set(base.messages.map(({ id }) => id));
    for (const { id } of [...mine.messages, ...theirs.messages]) assert.ok(known.has(id) || ids.includes(id));
    for (const { id } of base.messages) {
      const kept = [mine, theirs].every((side) => side.messages.some((message) => message.id === id));
      assert.ok(!kept || ids.includes(id));
    }
    // Who gets the merged state has nothing left to merge.
    assert.ok(equal(threeWayMerge(theirs, merged, theirs), merged));
    assert.ok(equal(threeWayMerge(theirs, theirs, merged), merged));
  });
});

test("patch: it makes the one of the other, whatever they are", () => {
  randomly(3000, (random) => {
    const [from, to] = random.pick([
      () => [random.json(4), random.json(4)],
      () => {
        const chat = random.chat();
        return [chat, random.edited(chat)];
      },
    ])() as [unknown, unknown];
    assert.deepEqual(applied(from, diff(from, to)), to);
    assert.deepEqual(diff(from, structuredClone(from)), []);
  });
});

test("patch: an append is one operation", () => {
  assert.deepEqual(diff({ m: [a, b] }, { m: [a, b, c] }), [{ op: "add", path: "/m/-", value: c }]);
  assert.deepEqual(diff([a, b, c], [a, b]), [{ op: "remove", path: "/2" }]);
  assert.deepEqual(diff([a, b, c], [a]), Array(2).fill({ op: "remove", path: "/1" }));
  assert.deepEqual(diff({ "a/b~c": 1 }, { "a/b~c": 2 }), [{ op: "replace", path: "/a~1b~0c", value: 2 }]);
  assert.deepEqual(diff({ x: 1, y: 1 }, { y: 1 }), [{ op: "remove", path: "/x" }]);
});
