/** Where a job is shown. */

import type { Place } from "../route.svelte";
import { server } from "../server/store.svelte";
import type { LiveJob } from "../server/types";

const SEEN = ["classify", "detect", "search"];

export function placeOfJob(job: LiveJob): Place {
  const lane = server.request(job.name)?.lane;
  if (lane === "train") return { page: "train", query: { job: job.id } };
  if (lane === "data") return { page: "train", query: { data: String(job.request.source) } };
  if (SEEN.includes(job.name)) return { page: "see", query: { do: job.name, job: job.id } };
  if (["ask", "chat"].includes(job.name)) return { page: "ask", query: { jobs: job.id } };
  if (job.name === "latent-plane") return { page: "understand", query: { show: "plane", jobs: job.id } };
  return { page: "create", query: { job: job.id } };
}
