/** A grid of settings: one job a cell, the same noise in all. Pure. */

import type { Field } from "../../form/schema";
import { readLabels } from "../../form/lists";
import type { Job, Values } from "../../server/types";

export interface Axis {
  path: string;
  values: unknown[];
}

const SUGGESTED: Record<string, string> = {
  guidance: "1, 2, 4, 8",
  steps: "2, 5, 10, 20, 40",
  sampler: "euler, euler_ancestral, dpmpp_2m, ddim",
  spacing: "karras, trailing, leading",
  rescale: "0, 0.35, 0.7",
  strength: "0.25, 0.5, 0.75, 1",
  variation_strength: "0, 0.1, 0.3, 0.6",
  clip_skip: "1, 2",
  truncation: "0.3, 0.6, 1, 0",
  seed: "0, 1, 2, 3",
  eta: "0, 0.5, 1",
};

/** Fields that make sense on an axis. */
export function axisFields(fields: Field[]): Field[] {
  return fields.filter(
    ({ kind, names, path }) =>
      !["n", "model", "deterministic", "precision", "backend", "noise_source", "quantize"].includes(path) &&
      (kind === "number" || kind === "whole" || kind === "choice" || (kind === "words" && !names)),
  );
}

export function suggestValues(field: Field, current: unknown): string {
  return SUGGESTED[field.path] ?? (field.choices.length ? field.choices.filter(Boolean).join(", ") : String(current ?? ""));
}

/** The values of an axis as they were written: numbers where the field holds numbers. Prompts may have commas, so they are
 * one a line.
 */
export function readAxis(field: Field, text: string): unknown[] {
  const lines = field.path === "prompt" || field.path === "negative" ? text.split("\n").map((one) => one.trim()).filter(Boolean) : readLabels(text);
  const numeric = field.kind === "number" || field.kind === "whole";
  return lines.map((one) => (numeric && !Number.isNaN(Number(one)) ? Number(one) : one));
}

/** One request a cell, row by row. */
export function cellsOf(base: Values, x: Axis, y?: Axis): Values[] {
  const rows = y ? y.values.map((value) => ({ [y.path]: value })) : [{}];
  return rows.flatMap((row) => x.values.map((value) => ({ ...base, n: 1, ...row, [x.path]: value })));
}

export interface Table<Cell> {
  columns: unknown[];
  rows: { value: unknown; cells: (Cell | undefined)[] }[];
}

/** Jobs as a table, by what their requests have for one or two fields. */
export function tableOf<Cell extends Pick<Job, "request">>(jobs: Cell[], x: string, y?: string): Table<Cell> {
  const distinct = (path: string | undefined) => (path ? [...new Set(jobs.map((job) => job.request[path] ?? null))] : [null]);
  const columns = distinct(x);
  const rows = distinct(y).map((value) => ({
    value,
    cells: columns.map((column) =>
      jobs.find((job) => (job.request[x] ?? null) === column && (!y || (job.request[y] ?? null) === value)),
    ),
  }));
  return { columns, rows };
}
