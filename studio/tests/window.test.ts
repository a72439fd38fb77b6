import { describe, expect, test } from "vitest";
import { lookAt } from "../src/pages/library/window";

const at = (count: number, top: number, width = 1000, height = 800) => lookAt(count, { width, top, height, least: 150, gap: 8, spare: 2 });

describe("a grid of 5,000 pictures", () => {
  test("has only the pictures in sight in the page", () => {
    for (const top of [0, 1, 5_000, 77_777, 10 ** 9]) {
      const sight = at(5_000, top);
      expect(sight.last - sight.first).toBeLessThan(80);
    }
  });

  test("shows every picture somewhere", () => {
    const seen = new Set<number>();
    const { total } = at(5_000, 0);
    for (let top = 0; top <= total; top += 700) {
      const sight = at(5_000, top);
      for (let picture = sight.first; picture < sight.last; picture++) seen.add(picture);
    }
    expect(seen.size).toBe(5_000);
  });

  test("places rows where they are scrolled to", () => {
    const sight = at(5_000, 20_000);
    expect(sight.above).toBeLessThanOrEqual(20_000);
    expect(sight.above + Math.ceil((sight.last - sight.first) / sight.columns) * sight.pitch).toBeGreaterThan(20_800);
    expect(sight.columns * sight.pitch).toBeCloseTo(1008);
  });

  test("fits narrow windows and few pictures", () => {
    expect(at(5_000, 0, 100).columns).toBe(1);
    expect(at(3, 0)).toMatchObject({ first: 0, last: 3 });
    expect(at(0, 0)).toMatchObject({ first: 0, last: 0, total: 0 });
  });
});
