/** Several jobs that belong to one instrument. Their ids are in the address, so that a reload shows the same. */

import { route } from "../../route.svelte";
import { ServiceError } from "../../server/api";
import { isActive } from "../../server/fold";
import { server } from "../../server/store.svelte";
import type { LiveJob, Values } from "../../server/types";

export class JobSeries {
  error = $state("");
  ids = $derived((route.place.query.jobs ?? "").split(" ").filter(Boolean));
  jobs = $derived(this.ids.map((id) => server.jobs.get(id)).filter((job): job is LiveJob => job !== undefined));
  active = $derived(this.jobs.filter(isActive));

  constructor(readonly key: string) {
    $effect(() => {
      for (const id of this.ids) if (!server.jobs.has(id)) server.find(id).catch(() => undefined);
    });
  }

  /** Send requests of one kind, one job each, and show them. */
  async send(name: string, requests: Values[], query: { previews?: "all" } = {}): Promise<void> {
    this.error = "";
    const ids: string[] = [];
    try {
      for (const request of requests) ids.push((await server.submit(name, request, query)).id);
    } catch (failure) {
      if (!(failure instanceof ServiceError)) throw failure;
      this.error = failure.message;
    }
    if (ids.length) route.go("understand", { show: this.key, jobs: ids.join(" ") }, true);
  }

  cancel(): void {
    for (const job of this.active) void server.cancel(job.id).catch(() => undefined);
  }
}

/** Any seed. */
export function someSeed(): number {
  return Math.floor(Math.random() * 2 ** 31);
}
