import { server } from "../../server/store.svelte";
import type { LiveJob, RequestKind } from "../../server/types";
import { drawingKinds } from "../create/draft.svelte";

/** Kinds of model that have no steps: what a conditional VAE or GAN draws is there at once. */
const AT_ONCE = ["cvae", "wgan"];

/** Models that draw step by step, by the request that draws with them. */
export function diffusionModels(): { model: string; kind: RequestKind }[] {
  const at = new Set(server.models.filter(({ kind }) => kind && AT_ONCE.includes(kind)).map(({ name }) => name));
  return drawingKinds(server.requests).flatMap((kind) => kind.models.filter((model) => !at.has(model)).map((model) => ({ model, kind })));
}

/** What a job draws; empty without one. */
export function subjectIn(job: LiveJob | undefined): string {
  return String(job?.request.prompt || job?.request.label || "");
}

/** What to draw, in the field that the request has for it. */
export function subjectOf(kind: RequestKind, text: string): Record<string, string> {
  return "prompt" in (kind.schema.properties ?? {}) ? { prompt: text } : { label: text };
}
