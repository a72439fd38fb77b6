/** How many columns a number of pictures is shown in: near a square, at most five wide. */
export function columnsOf(count: number): number {
  return Math.max(1, Math.min(5, Math.ceil(Math.sqrt(count))));
}
