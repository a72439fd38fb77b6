/** What becomes of pairs of pictures and texts as more of them are compared at once. Pure. */

import type { Point } from "../../parts/chart";

/** Of a batch: the cosines of its pictures (rows) with its texts (columns), pairs on the diagonal. */
export type Measure = (cosines: number[][]) => number;

/** The share of pictures whose own text is the nearest of the batch. */
export function matched(cosines: number[][]): number {
  return cosines.filter((row, at) => row.every((cosine, other) => other === at || cosine < (row[at] ?? 0))).length / Math.max(1, cosines.length);
}

/** The mean of a measure over batches of each size, drawn from all pairs: all batches where there are few, else `draws` of
 * them, the same ones each time.
 */
export function overBatch(cosines: number[][], measure: Measure, draws = 60): Point[] {
  const random = randomFrom(1);
  const points: Point[] = [];
  for (let size = 2; size <= cosines.length; size++) {
    const count = size === cosines.length ? 1 : draws;
    let sum = 0;
    for (let number = 0; number < count; number++) {
      const chosen = draw(cosines.length, size, random);
      sum += measure(chosen.map((row) => chosen.map((column) => cosines[row]?.[column] ?? 0)));
    }
    points.push([size, sum / count]);
  }
  return points;
}

/** Different numbers below `count`, all equally likely (Fisher and Yates). */
function draw(count: number, size: number, random: () => number): number[] {
  const all = Array.from({ length: count }, (_, number) => number);
  for (let at = 0; at < size; at++) {
    const other = at + Math.floor(random() * (count - at));
    [all[at], all[other]] = [all[other] ?? 0, all[at] ?? 0];
  }
  return all.slice(0, size);
}

/** Numbers in [0, 1) that are the same each time (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
