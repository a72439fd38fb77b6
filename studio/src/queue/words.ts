/** Jobs in words. Pure. */

import type { LiveJob, Values } from "../server/types";

/** What a job is about: its prompt, its class, its labels, the name of its run. */
export function aboutOf(job: LiveJob): string {
  const { prompt, label, labels, text, folder, source, message, raw, question } = job.request as Values;
  const about = job.run || [prompt, message, raw, question, label, labels, text, source, folder].find((one) => one && String(one));
  return about ? [about].flat().join(", ") : kindOf(job);
}

/** Its kind, such as `text to image`. */
export function kindOf(job: LiveJob): string {
  const words = job.name.replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** How it goes, such as `42 %, step 8 of 20`. */
export function progressOf(job: LiveJob): string {
  if (job.state === "waiting") return job.place ? `${job.place} before it` : "Next";
  if (job.state === "cancelling") return "Stopping";
  if (job.state !== "running") return job.state.charAt(0).toUpperCase() + job.state.slice(1);
  if (job.loading) return `Loading ${job.loading}`;
  const share = `${Math.round(100 * (job.done ?? 0))} %`;
  return job.step === null ? share : `${share}, step ${job.step.toLocaleString("en")} of ${(job.steps ?? 0).toLocaleString("en")}`;
}
