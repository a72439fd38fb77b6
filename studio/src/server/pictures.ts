/** Pictures of the service: uploads, and what was made. */

import { call } from "./api";
import type { Picture, Values } from "./types";

export interface Upload extends Picture {
  /** The request that the file says it was made with. */
  request: { name: string; request: Values; notes: string[] } | null;
}

export function fileUrl(id: string): string {
  return `/api/files/${encodeURIComponent(id)}`;
}

/** Store a picture with the service.
 *
 * @throws ServiceError if it is none, or too large.
 */
export async function upload(file: Blob): Promise<Upload> {
  const form = new FormData();
  form.append("file", file);
  return call<Upload>("POST", "/api/uploads", form);
}

/** What a picture shows, for people who do not see it. */
export function describe(picture: Picture): string {
  const { prompt, shows, label, name, seed } = picture.facts;
  const what = String(prompt ?? label ?? shows ?? name ?? "a picture");
  return seed === undefined ? what : `${what}, seed ${seed}`;
}

/** A name for a download that says what it is. */
export function fileName(picture: Picture): string {
  const words = describe(picture)
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "");
  return `${words.slice(0, 80) || "picture"}.png`;
}
