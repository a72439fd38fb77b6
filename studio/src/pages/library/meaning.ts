import { server } from "../../server/store.svelte";
import { fileUrl } from "../../server/pictures";
import type { Picture } from "../../server/types";

interface Match {
  name: string;
  score: number;
  file?: string;
}

/** The pictures of the library that fit a text best, as a CLIP sees them.
 *
 * @throws ServiceError with what went wrong.
 */
export async function findByMeaning(text: string, model: string): Promise<Picture[]> {
  const { id } = await server.submit("search", { folder: "results", text: [text], model, k: 200 });
  const job = await server.ended(id);
  const matches = (job.result?.values.matches ?? []) as Match[];
  return matches
    .filter((match) => match.file)
    .map(({ file = "", score }) => ({ id: file, url: fileUrl(file), job: null, kind: "made", width: 0, height: 0, facts: { shows: text, score } }));
}
