/** A page that sends one kind of request and shows its newest job: that of the address, or the last one of its kind. */

import { route } from "../route.svelte";
import { server } from "../server/store.svelte";
import type { LiveJob, Values } from "../server/types";
import { Form } from "./form.svelte";

export class Task {
  form = new Form();
  busy = $state(false);

  kind = $derived.by(() => server.request(this.name));
  models = $derived(this.kind?.models ?? []);
  job = $derived.by<LiveJob | undefined>(() => {
    const id = route.place.query.job;
    const chosen = id ? server.jobs.get(id) : undefined;
    return chosen?.name === this.name ? chosen : server.newest.find((job) => job.name === this.name);
  });

  constructor(readonly name: string) {
    if (this.kind) this.form.use(this.kind.schema);
    if (this.job) this.form.fill(this.job.request); // what is shown can be changed and sent again
    if (!this.models.includes(String(this.form.values.model))) this.form.values.model = this.models[0];
  }

  /** Send what is filled in, with these values beside it. */
  async send(values: Values = {}): Promise<void> {
    this.busy = true;
    const job = await this.form.try(() => server.submit(this.name, { ...this.form.toRequest(), ...values }));
    if (job) route.go(route.place.page, { ...route.place.query, job: job.id }, true);
    this.busy = false;
  }
}
