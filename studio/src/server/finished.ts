import { ServiceError, call } from "./api";
import { follow } from "./events";
import { FINAL, type Job, type State } from "./types";

/** Wait for the end of a job.
 *
 * @throws ServiceError if it failed, with what the service says about it.
 */
export async function finished(job: Job): Promise<Job> {
  let now: Job = job;
  while (!FINAL.includes(now.state as State)) {
    await follow(`/api/jobs/${job.id}/events`, 0, new AbortController().signal, () => undefined);
    now = await call<Job>("GET", `/api/jobs/${job.id}`);
  }
  if (now.state === "failed") throw new ServiceError(now.error?.message ?? "The job failed.", 500);
  return now;
}
