/** Where a job is shown. */

import type { Place } from "../route.svelte";
import type { LiveJob } from "../server/types";

export function placeOfJob(job: LiveJob): Place {
  return { page: "create", query: { job: job.id } };
}
