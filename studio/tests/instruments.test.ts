import { describe, expect, test } from "vitest";
import { curvesOf } from "../src/pages/train/curves";
import { contrastiveLoss, sigmoidLoss } from "../src/pages/see/probability";
import { matched, overBatch } from "../src/pages/understand/overBatch";
import { between, columnsOf, nearestPoint, type Point } from "../src/pages/understand/plane";

const grid: Point[] = [[-1, 1], [0, 1], [2, 1], [-1, -1], [0, -1], [2, -1]];

describe("a plane of codes", () => {
  test("has its columns from the left and its rows from the top", () => {
    expect(columnsOf(grid)).toEqual({ xs: [-1, 0, 2], ys: [1, -1] });
  });

  test("is read between the middles of its cells", () => {
    expect([0, 1 / 6, 0.5, 4 / 6, 5 / 6, 1].map((share) => between([-1, 0, 2], share))).toEqual([-1, -1, 0, 1, 2, 2]);
    expect(between([], 0.5)).toBe(0);
  });

  test("knows the nearest picture", () => {
    expect(nearestPoint(grid, [1.2, -0.4])).toBe(5);
    expect(nearestPoint([], [0, 0])).toBe(-1);
  });
});

describe("losses over the batch", () => {
  const even = Array.from({ length: 6 }, () => Array<number>(6).fill(0.2));

  test("of equal cosines are what guessing costs, at any size", () => {
    for (const [size, loss] of overBatch(even, (one) => contrastiveLoss(one, 30))) expect(loss).toBeCloseTo(Math.log(size), 10);
    for (const [, share] of overBatch(even, matched)) expect(share).toBe(0);
  });

  test("of the sigmoid grow by the same with every text", () => {
    const losses = overBatch(even, (one) => sigmoidLoss(one, 10, -5)).map(([, loss]) => loss);
    const steps = losses.slice(1).map((loss, at) => loss - (losses[at] ?? 0));
    for (const step of steps) expect(step).toBeCloseTo(steps[0] ?? 0, 10);
  });

  test("are those of all pairs at the last size, and the same each time", () => {
    const cosines = Array.from({ length: 5 }, (_, row) => Array.from({ length: 5 }, (_, column) => Math.sin(3 * row + column * column)));
    const points = overBatch(cosines, (one) => contrastiveLoss(one, 5));
    expect(points.map(([size]) => size)).toEqual([2, 3, 4, 5]);
    expect(points.at(-1)?.[1]).toBeCloseTo(contrastiveLoss(cosines, 5), 10);
    expect(overBatch(cosines, (one) => contrastiveLoss(one, 5))).toEqual(points);
    expect(matched([[0.9, 0.1], [0.3, 0.2]])).toBe(0.5);
  });
});

describe("curves of a training", () => {
  test("held out beside training, and the rate as what it is", () => {
    const curves = curvesOf([{ rows: [{ step: 10, rate: 0.5, loss: 2, test_loss: 3 }] }]);
    expect(curves.map(({ name, series }) => [name, series.map((one) => one.name)])).toEqual([
      ["Loss", ["training", "held out"]],
      ["Learning rate, as a share of its highest", ["training"]],
    ]);
  });
});
