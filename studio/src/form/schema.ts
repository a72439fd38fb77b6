/** The served schema of a request as the fields of a form, and what was filled in as a request. Pure. */

import type { Schema, Values } from "../server/types";

export type Kind = "words" | "whole" | "number" | "flag" | "choice" | "list" | "numbers";

export interface Field {
  /** Where it is in the request, such as `training.steps`. */
  path: string;
  label: string;
  kind: Kind;
  /** What its text names, if it does not stand for itself. */
  names: Schema["names"];
  /** May be left empty: the model decides. */
  optional: boolean;
  required: boolean;
  default: unknown;
  help: string;
  choices: string[];
}

const LABELS: Record<string, string> = {
  image: "Start from a picture",
  mask: "Redraw only a part",
  strength: "How much is redrawn",
  variation_strength: "How different",
  n: "Pictures",
  negative: "Negative prompt",
  loras: "LoRAs",
  clip: "CLIP",
  clip_skip: "CLIP skip",
  nms: "Overlap of boxes",
  k: "Results",
  gp_weight: "Weight of the gradient penalty",
};

/** A field's name as people write it. */
export function labelOf(path: string): string {
  const name = path.split(".").at(-1) ?? path;
  const words = name.replaceAll("_", " ");
  return LABELS[name] ?? words.charAt(0).toUpperCase() + words.slice(1);
}

/** A sentence of the service with the labels of the fields that it names, such as `batch_size`. */
export function nameFields(sentence: string): string {
  return sentence.replace(/`([a-z][a-z0-9_]*)`/g, (_, name: string) => `“${labelOf(name)}”`);
}

/** All fields of a request, those of inner objects by their path. Files of the service's machine cannot be named, so there
 * is no field for them.
 */
export function readFields(schema: Schema, prefix = "", defaults?: Values): Field[] {
  const fields: Field[] = [];
  for (const [name, one] of Object.entries(schema.properties ?? {})) {
    const path = prefix + name;
    const given = defaults?.[name] ?? one.default;
    if (one.names === "file") continue;
    if (one.properties) fields.push(...readFields(one, `${path}.`, given as Values | undefined));
    else fields.push(readField(path, one, given, schema.required?.includes(name) ?? false));
  }
  return fields;
}

function readField(path: string, schema: Schema, given: unknown, required: boolean): Field {
  const parts = schema.anyOf ?? [schema];
  const main = parts.find((part) => part.type !== "null") ?? {};
  return {
    path,
    label: labelOf(path),
    kind: kindOf(main),
    names: schema.names ?? main.names,
    optional: parts.some((part) => part.type === "null"),
    required,
    default: given ?? null,
    help: schema.description ?? "",
    choices: (main.enum ?? []).map(String),
  };
}

function kindOf(schema: Schema): Kind {
  if (schema.enum) return "choice";
  if (schema.type === "integer") return "whole";
  if (schema.type === "number") return "number";
  if (schema.type === "boolean") return "flag";
  if (schema.type !== "array") return "words";
  return schema.items?.type === "string" ? "list" : "numbers";
}

/** What was filled in as a request: only what differs from the default, so that a model's own defaults apply. An inner object
 * is sent whole, because the service completes a part of it from other defaults.
 */
export function toRequest(fields: Field[], values: Values): Values {
  const request: Values = {};
  const groups = new Map<string, Field[]>();
  for (const field of fields) {
    const group = field.path.split(".").slice(0, -1).join(".");
    groups.set(group, [...(groups.get(group) ?? []), field]);
  }
  for (const [group, members] of groups) {
    const changed = members.filter((field) => isChanged(field, values[field.path]));
    for (const field of group && changed.length ? members : changed) {
      put(request, field.path, values[field.path] ?? field.default);
    }
  }
  return request;
}

/** Whether a value was given that is not the default. */
export function isChanged(field: Field, value: unknown): boolean {
  return value !== undefined && value !== null && JSON.stringify(value) !== JSON.stringify(field.default);
}

function put(target: Values, path: string, value: unknown): void {
  const [first = "", ...rest] = path.split(".");
  if (rest.length === 0) target[first] = value;
  else put((target[first] ??= {}) as Values, rest.join("."), value);
}

/** A request as the values of its fields. */
export function toValues(request: Values, prefix = ""): Values {
  const values: Values = {};
  for (const [name, value] of Object.entries(request)) {
    const inner = value !== null && typeof value === "object" && !Array.isArray(value);
    if (inner) Object.assign(values, toValues(value as Values, `${prefix}${name}.`));
    else if (value !== null) values[prefix + name] = value;
  }
  return values;
}

/** The field that an error of the service is about: `labels` for `labels[2]`; without a name the first word of the sentence,
 * as in "TextToImage: steps must be 1 to 1000", if it is a field.
 */
export function fieldOfError(param: string | null, fields: Field[], sentence = ""): Field | undefined {
  const said = /^(?:\w+: )?(\w+)/.exec(sentence)?.[1];
  const path = param?.replace(/\[\d+\]/g, "") ?? said;
  return fields.find((field) => field.path === path) ?? fields.find((field) => field.path.endsWith(`.${path}`));
}

/** What a kind of model is called where the help of a field says whom it is for, as in "Diffusion: steps of the sampler". */
const CALLED: Record<string, string> = { cvae: "VAE", wgan: "GAN", "pixel-diffusion": "Diffusion" };

/** Whether a field does something for a kind of model. */
export function appliesTo(field: Field, kind: string | null | undefined): boolean {
  const called = CALLED[kind ?? ""];
  const only = /^((?:Diffusion|GAN|VAE)(?:, (?:Diffusion|GAN|VAE))*):/.exec(field.help)?.[1];
  return !called || !only || only.split(", ").includes(called);
}
