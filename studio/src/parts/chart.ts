/** What a chart needs: ranges, ticks and lines. Pure. */

export type Point = [x: number, y: number];

export interface Series {
  name: string;
  points: Point[];
}

/** Smallest and largest of all values; a little wider where they are equal. */
export function rangeOf(values: number[]): [number, number] {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) {
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (least > most) return [0, 1];
  return least === most ? [least - 0.5, most + 0.5] : [least, most];
}

/** About `count` round numbers within a range. */
export function ticksOf([least, most]: [number, number], count: number): number[] {
  const rough = (most - least) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const ticks: number[] = [];
  for (let at = Math.ceil(least / step) * step; at <= most + step * 1e-9; at += step) ticks.push(Number(at.toPrecision(12)));
  return ticks;
}

/** At most `most` points, the first and last among them: of each run of points its smallest and largest stay. */
export function thin(points: Point[], most: number): Point[] {
  if (points.length <= most) return points;
  const run = Math.ceil((2 * points.length) / most);
  const kept: Point[] = [];
  for (let at = 0; at < points.length; at += run) {
    const part = points.slice(at, at + run).sort((a, b) => a[1] - b[1]);
    kept.push(...[part[0], part.at(-1)].filter((one) => one !== undefined).sort((a, b) => a[0] - b[0]));
  }
  const last = points.at(-1);
  if (last && kept.at(-1) !== last) kept.push(last);
  return kept;
}

/** The point of a series that is nearest to a place. */
export function nearest(points: Point[], x: number): Point | undefined {
  return points.reduce<Point | undefined>((best, point) => (best && Math.abs(best[0] - x) <= Math.abs(point[0] - x) ? best : point), undefined);
}

/** A number in few characters. */
export function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 10_000) return `${Number((value / 1000).toPrecision(3))}k`;
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}
