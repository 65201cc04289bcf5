import { equal, isObject, type Json } from "./json.js";

/** One operation of a JSON Patch (RFC 6902). */
export interface Operation {
  op: "add" | "remove" | "replace";
  path: string;
  value?: Json;
}

/** What makes `to` of `from`; nothing if they are equal. Elements that come at the end of an array are appended. */
export function diff(from: Json, to: Json, path = ""): Operation[] {
  if (equal(from, to)) return [];
  if (Array.isArray(from) && Array.isArray(to)) return arrays(from, to, path);
  if (isObject(from) && isObject(to)) return objects(from, to, path);
  return [{ op: "replace", path, value: to }];
}

function objects(from: Record<string, Json>, to: Record<string, Json>, path: string): Operation[] {
  const at = (name: string) => `${path}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`; // RFC 6901, section 3
  const removed = Object.keys(from).filter((name) => !Object.hasOwn(to, name));
  return [
    ...removed.map((name): Operation => ({ op: "remove", path: at(name) })),
    ...Object.keys(to).flatMap((name): Operation[] =>
      Object.hasOwn(from, name) ? diff(from[name], to[name], at(name)) : [{ op: "add", path: at(name), value: to[name] }],
    ),
  ];
}

function arrays(from: Json[], to: Json[], path: string): Operation[] {
  const both = Math.min(from.length, to.length);
  return [
    ...to.slice(0, both).flatMap((element, index) => diff(from[index], element, `${path}/${index}`)),
    ...from.slice(both).map((): Operation => ({ op: "remove", path: `${path}/${both}` })),
    ...to.slice(both).map((value): Operation => ({ op: "add", path: `${path}/-`, value })),
  ];
}
