/** Which rows of a long grid are in sight: only these are in the page. Pure. */

export interface Sight {
  /** First and last picture, the last excluded. */
  first: number;
  last: number;
  /** Pixels above the first row, and of all rows together. */
  above: number;
  total: number;
  columns: number;
  /** Side of a cell with its gap. */
  pitch: number;
}

/** @param top how far the grid is scrolled, in pixels; `height` is that of the window, `width` that of the grid. */
export function lookAt(
  count: number,
  { width, top, height, least, gap, spare = 2 }: { width: number; top: number; height: number; least: number; gap: number; spare?: number },
): Sight {
  const columns = Math.max(1, Math.floor((width + gap) / (least + gap)));
  const pitch = (width + gap) / columns;
  const rows = Math.ceil(count / columns);
  const firstRow = Math.min(Math.max(0, Math.floor(top / pitch) - spare), Math.max(0, rows - 1));
  const lastRow = Math.min(rows, Math.ceil((top + height) / pitch) + spare);
  return {
    first: firstRow * columns,
    last: Math.max(firstRow * columns, Math.min(count, lastRow * columns)),
    above: firstRow * pitch,
    total: Math.max(0, rows * pitch - gap),
    columns,
    pitch,
  };
}
