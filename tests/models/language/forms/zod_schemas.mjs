// Schemas as people write them with zod, in zod's own JSON Schema. Made once, by zod 4.6 under Node 20:
//   npm install zod@4 && node zod_schemas.mjs > zod_schemas.json
import { z } from "zod";
const Node = z.object({ value: z.number().int(), get next() { return Node.nullable(); } });
const Tree = z.object({ name: z.string().max(12), get children() { return z.array(Tree).max(3); } });
const schemas = {
  string: z.object({ a: z.string().max(20) }),
  email: z.object({ a: z.email() }),
  uuid: z.object({ a: z.uuid() }),
  uuidv4: z.object({ a: z.uuidv4() }),
  url: z.object({ a: z.url() }),
  ipv4: z.object({ a: z.ipv4() }),
  ipv6: z.object({ a: z.ipv6() }),
  cidrv4: z.object({ a: z.cidrv4() }),
  date: z.object({ a: z.iso.date() }),
  time: z.object({ a: z.iso.time() }),
  datetime: z.object({ a: z.iso.datetime() }),
  datetime_offset: z.object({ a: z.iso.datetime({ offset: true }) }),
  duration: z.object({ a: z.iso.duration() }),
  base64: z.object({ a: z.base64().max(40) }),
  nanoid: z.object({ a: z.nanoid() }),
  cuid2: z.object({ a: z.cuid2() }),
  ulid: z.object({ a: z.ulid() }),
  e164: z.object({ a: z.e164() }),
  regex: z.object({ a: z.string().regex(/^[A-Z]{2}-\d{4}$/) }),
  starts: z.object({ a: z.string().startsWith("ab").endsWith("yz").max(12) }),
  includes: z.object({ a: z.string().includes("needle").max(20) }),
  password: z.object({ a: z.string().min(8).max(24).regex(/^(?=.*[A-Z])(?=.*\d).+$/) }),
  int: z.object({ a: z.int() }),
  int32: z.object({ a: z.int32() }),
  uint32: z.object({ a: z.uint32() }),
  float32: z.object({ a: z.float32() }),
  positive: z.object({ a: z.number().positive(), b: z.number().nonnegative().max(1) }),
  between: z.object({ a: z.number().gt(0).lt(0.1), b: z.number().gt(2).lt(2.5) }),
  multiple: z.object({ a: z.number().multipleOf(0.25).min(0).max(10), b: z.int().multipleOf(7) }),
  boolean_null: z.object({ a: z.boolean(), b: z.null() }),
  literal: z.object({ a: z.literal("x"), b: z.literal(5), c: z.literal([1, "two", null]) }),
  enumeration: z.object({ a: z.enum(["red", "green", "blue"]) }),
  optional: z.object({ a: z.string().max(5).optional(), b: z.number().int().nullable(), c: z.string().max(4).nullish() }),
  defaults: z.object({ a: z.int().default(3), b: z.array(z.enum(["x", "y"])).max(3).default([]) }),
  array: z.object({ a: z.array(z.int()).min(1).max(4) }),
  tuple: z.object({ a: z.tuple([z.int(), z.string().max(5)]) }),
  tuple_rest: z.object({ a: z.tuple([z.int()], z.boolean()) }),
  record: z.object({ a: z.record(z.string().max(8), z.int()) }),
  record_enum: z.object({ a: z.record(z.enum(["x", "y"]), z.int()) }),
  record_partial: z.object({ a: z.partialRecord(z.enum(["x", "y"]), z.int()) }),
  record_regex: z.object({ a: z.record(z.string().regex(/^k\d$/), z.boolean()) }),
  union: z.object({ a: z.union([z.string().max(6), z.int(), z.null()]) }),
  discriminated: z.object({ a: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("circle"), radius: z.number().positive().max(100) }),
    z.object({ kind: z.literal("square"), side: z.number().positive().max(100) }) ]) }),
  intersection: z.object({ a: z.intersection(z.object({ x: z.int() }), z.object({ y: z.boolean() })) }),
  strict: z.strictObject({ a: z.int(), b: z.strictObject({ c: z.boolean() }) }),
  loose: z.looseObject({ a: z.int() }),
  catchall: z.object({ a: z.int() }).catchall(z.boolean()),
  any: z.object({ a: z.any(), b: z.unknown() }),
  never: z.object({ a: z.int(), b: z.never().optional() }),
  list: Node,
  tree: Tree,
  described: z.object({ a: z.string().max(9).describe("A name.").meta({ examples: ["Ada"], deprecated: true }) }),
  readonly: z.object({ a: z.array(z.int()).max(2).readonly() }),
  lazy: z.object({ a: z.json() }),
  template: z.object({ a: z.templateLiteral(["v", z.number().int().min(0).max(9), ".", z.enum(["a", "b"])]) }),
  nested: z.object({ order: z.object({ id: z.uuid(), lines: z.array(z.object({ sku: z.string().max(8), count: z.int().min(1).max(99) })).min(1).max(3) }) }),
  recursive_union: z.object({ a: z.union([z.int(), z.lazy(() => Tree)]) }),
};
const out = {};
for (const [name, schema] of Object.entries(schemas)) {
  out[name] = z.toJSONSchema(schema);
  out[name + "_draft7"] = z.toJSONSchema(schema, { target: "draft-7", io: "input" });
}
process.stdout.write(JSON.stringify(out));
