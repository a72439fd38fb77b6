import type { LiveJob } from "../../server/types";

/** The classes of a model as pictures that it drew have named them: of jobs that drew all in turn, more than once around.
 * Pure.
 */
export function classNames(jobs: Iterable<Pick<LiveJob, "name" | "request" | "pictures">>, model: string): string[] {
  for (const job of jobs) {
    if (job.name !== "class-to-image" || job.request.model !== model || job.request.label) continue;
    const shown = job.pictures.map((picture) => String(picture.facts.shows));
    const names = [...new Set(shown)];
    if (names.length < shown.length) return names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  }
  return [];
}
