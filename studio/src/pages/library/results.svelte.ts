/** The pictures of the library, read page by page as they come into sight. */

import { call } from "../../server/api";
import type { Picture } from "../../server/types";

const PAGE = 200;

export class Results {
  pictures = $state.raw<Picture[]>([]);
  complete = $state(false);
  private reading = false;
  private words = "";

  /** Begin again, with pictures that have all of these words in prompt or label. */
  async search(words: string): Promise<void> {
    this.words = words;
    this.complete = false;
    this.reading = false;
    this.pictures = [];
    await this.more();
  }

  /** Read the next page, if there is one and none is being read. */
  async more(): Promise<void> {
    if (this.reading || this.complete) return;
    this.reading = true;
    const words = this.words;
    try {
      const last = this.pictures.at(-1)?.number;
      const query = new URLSearchParams({ limit: String(PAGE), words, ...(last === undefined ? {} : { before: String(last) }) });
      const page = await call<Picture[]>("GET", `/api/results?${query}`);
      if (words !== this.words) return; // another search has begun
      const there = new Set(this.pictures.map((picture) => picture.id)); // `refresh` may have been faster
      this.pictures = [...this.pictures, ...page.filter((picture) => !there.has(picture.id))];
      this.complete = page.length < PAGE;
    } finally {
      if (words === this.words) this.reading = false;
    }
  }

  /** What has been made since: at the top. */
  async refresh(): Promise<void> {
    const words = this.words;
    const query = new URLSearchParams({ limit: String(PAGE), words });
    const page = await call<Picture[]>("GET", `/api/results?${query}`);
    if (words !== this.words) return;
    const newest = this.pictures[0]?.number ?? -1;
    const fresh = page.filter((picture) => (picture.number ?? 0) > newest);
    if (fresh.length) this.pictures = [...fresh, ...this.pictures];
  }

  forget(id: string): void {
    this.pictures = this.pictures.filter((picture) => picture.id !== id);
  }
}
