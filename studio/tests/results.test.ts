import { beforeEach, expect, test, vi } from "vitest";
import type { Picture } from "../src/server/types";
import { Results } from "../src/pages/library/results.svelte";

const waiting: ((pictures: Picture[]) => void)[] = [];
vi.mock("../src/server/api", () => ({ call: () => new Promise((answer) => waiting.push(answer as (pictures: Picture[]) => void)) }));
beforeEach(() => void (waiting.length = 0));

const picture = (number: number): Picture => ({ id: `p${number}`, url: "", kind: "made", width: 8, height: 8, facts: {}, number }) as unknown as Picture;
const shown = (results: Results) => results.pictures.map((one) => one.number);

test("a picture that was made while the first page is read is there once", async () => {
  const results = new Results();
  const [first, fresh] = [results.more(), results.refresh()];
  waiting[1]?.([picture(3), picture(2), picture(1)]); // the refresh is answered first
  await fresh;
  waiting[0]?.([picture(2), picture(1)]);
  await first;
  expect(shown(results)).toEqual([3, 2, 1]);
});

test("what was asked before another search is not shown in it", async () => {
  const results = new Results();
  const before = results.refresh();
  const search = results.search("a cat");
  waiting[1]?.([picture(7)]);
  await search;
  waiting[0]?.([picture(9)]);
  await before;
  expect(shown(results)).toEqual([7]);
});
