/** The request that is being written. It is of this tab alone until it is sent, so it is kept in the tab's own storage. */

import { Form } from "../../form/form.svelte";
import { appliesTo, toRequest } from "../../form/schema";
import { server } from "../../server/store.svelte";
import type { LiveJob, Picture, RequestKind, Values } from "../../server/types";

const KEY = "triptych-draft";

/** Requests that draw: they have a seed and a number of pictures, those with a prompt first. A new system's appears here by
 * itself.
 */
export function drawingKinds(kinds: RequestKind[]): RequestKind[] {
  const has = (kind: RequestKind, field: string) => field in (kind.schema.properties ?? {});
  return kinds
    .filter((kind) => kind.lane === "draw" && has(kind, "seed") && has(kind, "n"))
    .sort((a, b) => Number(has(b, "prompt")) - Number(has(a, "prompt")));
}

class Draft {
  form = new Form();
  model = $state("");
  seedLocked = $state(false);

  kinds = $derived(drawingKinds(server.requests));
  models = $derived([...new Set(this.kinds.flatMap((kind) => kind.models))]);
  kind = $derived(this.kinds.find((kind) => kind.models.includes(this.model)));

  /** The fields that do something for this model. */
  fields = $derived(this.form.fields.filter((field) => appliesTo(field, server.model(this.model)?.kind)));

  constructor() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}") as Partial<{ model: string; values: Values; seedLocked: boolean }>;
      this.model = kept.model ?? "";
      this.form.values = kept.values ?? {};
      this.seedLocked = kept.seedLocked ?? false;
    } catch {
      sessionStorage.removeItem(KEY);
    }
  }

  /** Called whenever something changes. */
  keep(): void {
    const kept = { model: this.model, values: $state.snapshot(this.form.values), seedLocked: this.seedLocked };
    sessionStorage.setItem(KEY, JSON.stringify(kept));
  }

  /** The request as it would be sent. */
  toRequest(): Values {
    const { seed, ...request } = { ...toRequest(this.fields, $state.snapshot(this.form.values) as Values), model: this.model } as Values;
    return this.seedLocked && seed !== undefined ? { ...request, seed } : request;
  }

  async draw(): Promise<LiveJob | undefined> {
    const kind = this.kind;
    if (!kind) return undefined;
    return this.form.try(() => server.submit(kind.name, this.toRequest()));
  }

  /** Fill in a request that was made before. */
  recall(name: string, request: Values): void {
    const { model, ...rest } = request;
    const fitting = this.kinds.find((kind) => kind.name === name)?.models ?? [];
    if (typeof model === "string" && fitting.includes(model)) this.model = model;
    else if (!fitting.includes(this.model)) this.model = fitting[0] ?? this.model;
    this.form.fill(rest);
    this.seedLocked = typeof rest.seed === "number";
  }

  /** Draw from a picture: image-to-image, by a model that can. */
  startFrom(picture: Picture): void {
    const can = (kind: RequestKind) => "strength" in (kind.schema.properties ?? {});
    const kind = this.kinds.find(can);
    if (kind && !(this.kind && can(this.kind))) this.model = kind.models[0] ?? this.model;
    this.form.values = { ...this.form.values, image: picture.id, mask: undefined };
  }
}

export const draft = new Draft();

/** The request of one picture of a job: with its own seed, and alone. */
export function requestOf(job: LiveJob, picture: Picture): Values {
  const { seed, prompt, variation_seed } = picture.facts;
  const made = (job.result?.values.request ?? job.request) as Values;
  const own = Object.fromEntries(Object.entries({ seed, prompt, variation_seed }).filter(([, value]) => value !== undefined));
  const label = "label" in made && picture.facts.shows ? { label: picture.facts.shows } : {};
  return { ...made, ...givenPictures(job.request), ...label, ...own, n: 1 };
}

/** A record names pictures without saying where they are; the request has their ids. */
function givenPictures(request: Values): Values {
  return Object.fromEntries(["image", "mask"].flatMap((name) => (request[name] ? [[name, request[name]]] : [])));
}
