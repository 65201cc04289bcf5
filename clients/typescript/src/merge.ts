import { equal, isObject, type Json } from "./json.js";

/**
 * The default merge: what both sides have made of `base`, in one value.
 *
 * - What one side alone has changed is taken from that side.
 * - Objects are merged member by member.
 * - Arrays whose elements are objects with an `id` of their own are united by it: theirs in their order, then mine that
 *   are new. An element that both have changed is merged; one that a side has removed and the other has left alone goes.
 * - Other arrays: if both sides only appended, their additions and then mine; else mine.
 * - A change beats a removal, so that nothing is lost that somebody has typed.
 * - In any other conflict mine wins.
 *
 * None of the values is changed. `base` is null or undefined when there was nothing before.
 */
export function threeWayMerge<T>(base: T | null | undefined, mine: T, theirs: T): T;
export function threeWayMerge(base: Json, mine: Json, theirs: Json): Json {
  if (equal(mine, theirs) || equal(base, theirs)) return mine;
  if (equal(base, mine) || mine === undefined) return theirs;
  if (isObject(mine) && isObject(theirs)) {
    return Object.fromEntries(united(members(isObject(base) ? base : {}), members(mine), members(theirs)));
  }
  if (Array.isArray(mine) && Array.isArray(theirs)) return arrays(Array.isArray(base) ? base : [], mine, theirs);
  return mine;
}

function arrays(base: Json[], mine: Json[], theirs: Json[]): Json[] {
  const [before, ours, others] = [base, mine, theirs].map(byId);
  if (before && ours && others) return united(before, ours, others).map(([, element]) => element);
  const appended = [mine, theirs].every((side) => equal(side.slice(0, base.length), base));
  return appended ? [...theirs, ...mine.slice(base.length)] : mine;
}

type Named = Map<any, Json>;

/** What stands under each name; theirs in their order, then mine. What is undefined is not there. */
function united(base: Named, mine: Named, theirs: Named): [any, Json][] {
  return [...new Set([...theirs.keys(), ...mine.keys()])]
    .map((name): [any, Json] => [name, threeWayMerge(base.get(name), mine.get(name), theirs.get(name))])
    .filter(([, value]) => value !== undefined);
}

function members(object: Record<string, Json>): Named {
  return new Map(Object.entries(object));
}

/** The elements by their ids; undefined when one has none, or two have the same. */
function byId(elements: Json[]): Named | undefined {
  const found = new Map(elements.map((element) => [isObject(element) ? element["id"] : undefined, element]));
  const sound = [...found.keys()].every((id) => typeof id === "string" || typeof id === "number");
  return sound && found.size === elements.length ? found : undefined;
}
