/** The page that is open, and what it shows, as the part of the address behind `#`. So reload and the back button show the
 * same, and an address can be sent to somebody.
 */

export const PAGES = ["create", "library", "see", "train", "understand", "ask"] as const;
export type Page = (typeof PAGES)[number];

export interface Place {
  page: Page;
  query: Record<string, string>;
}

/** `#/create?job=1a2b` as a place; anything unknown is the first page. */
export function readPlace(hash: string): Place {
  const [path = "", search = ""] = hash.replace(/^#\/?/, "").split("?");
  const page = PAGES.find((one) => one === path) ?? "create";
  return { page, query: Object.fromEntries(new URLSearchParams(search)) };
}

export function writePlace(page: Page, query: Record<string, string> = {}): string {
  const search = new URLSearchParams(query).toString();
  return `#/${page}${search ? `?${search}` : ""}`;
}

class Route {
  place = $state(readPlace(location.hash));

  constructor() {
    addEventListener("hashchange", () => (this.place = readPlace(location.hash)));
  }

  /** Open a page; `replace` leaves no step for the back button. */
  go(page: Page, query: Record<string, string> = {}, replace = false): void {
    const hash = writePlace(page, query);
    if (replace) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    this.place = readPlace(hash);
  }
}

export const route = new Route();
