/** What the service answers. Only the fields that the page reads. */

export type State =
  | "waiting"
  | "running"
  | "cancelling"
  | "done"
  | "failed"
  | "cancelled"
  | "interrupted";

export const FINAL: readonly State[] = ["done", "failed", "cancelled", "interrupted"];

export interface Picture {
  id: string;
  url: string;
  job: string | null;
  kind: "made" | "shown" | "upload";
  width: number;
  height: number;
  facts: Record<string, unknown>;
  /** Its place in the library: the newest has the largest. */
  number?: number;
}

export interface Failure {
  type?: string;
  message: string;
  /** The field of the request that it is about. */
  param?: string;
}

export type Values = Record<string, unknown>;

export interface Job {
  id: string;
  /** Of its request: the last part of its route, such as `text-to-image`. */
  name: string;
  state: State;
  request: Values;
  place: number | null;
  created: number;
  started: number | null;
  finished: number | null;
  /** Of a training: the name of its model. */
  run: string;
  result: { values: Values; pictures: Picture[] } | null;
  error: Failure | null;
  /** Share of the work that is done; only while it runs. */
  done: number | null;
}

/** One event of the log, with its number. */
export interface Event {
  number: number;
  event: string;
  job: string;
  time: number;
  data: Values;
}

/** A picture of what the model expects, in the middle of the work. */
export interface Preview {
  done: number;
  url: string;
}

/** A job, and what its events have said since the page was opened. */
export interface LiveJob extends Job {
  pictures: Picture[];
  previews: Preview[];
  /** Rows of a training's journal. */
  rows: Record<string, number | null>[];
  notes: string[];
  /** The model that is being loaded, or nothing. */
  loading: string;
  step: number | null;
  steps: number | null;
  /** What a language model has written so far, in the order of its events. */
  texts: { number: number; text: string }[];
}

export interface Schema {
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  names?: "model" | "picture" | "data" | "lora" | "labels" | "file";
}

export interface RequestKind {
  name: string;
  url: string;
  /** What it is about, such as `text to image`. */
  system: string;
  lane: "draw" | "train" | "data";
  models: string[];
  presets: Record<string, Values>;
  schema: Schema;
}

export interface Model {
  name: string;
  kind: string | null;
  created: number;
  bytes_loaded: number | null;
  /** What it draws with where the request leaves it open; empty where its files do not say. */
  defaults: Values;
  /** The classes it knows, if it draws classes; attributes, and names of numbers, likewise. */
  labels: string[];
  attributes: string[];
  columns: string[];
  /** Some of what it can be asked for, if that is recorded. */
  ideas: string[];
}

export interface Source {
  name: string;
  title?: string;
  pictures?: number;
}

export interface Samplers {
  samplers: { name: string; aliases: string[]; noise: string; calls: number }[];
  spacings: { name: string; label: string }[];
}
