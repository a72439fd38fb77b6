/** Points of a plane that was drawn as a grid. Pure. */

export type Point = [x: number, y: number];

/** The grid's places across, from the left, and down, from the top. */
export function columnsOf(points: Point[]): { xs: number[]; ys: number[] } {
  const distinct = (values: number[]) => [...new Set(values)].sort((a, b) => a - b);
  return { xs: distinct(points.map(([x]) => x)), ys: distinct(points.map(([, y]) => y)).reverse() };
}

/** The value at a share of the way over cells of equal width whose middles have these values. */
export function between(values: number[], share: number): number {
  const at = Math.min(values.length - 1, Math.max(0, share * values.length - 0.5));
  const low = values[Math.floor(at)] ?? 0;
  const high = values[Math.ceil(at)] ?? low;
  return low + (high - low) * (at - Math.floor(at));
}

/** The number of the point that is nearest; -1 where there are none. */
export function nearestPoint(points: Point[], [x, y]: Point): number {
  let best = -1;
  let least = Infinity;
  points.forEach((point, number) => {
    const far = Math.hypot(point[0] - x, point[1] - y);
    if (far < least) [best, least] = [number, far];
  });
  return best;
}
