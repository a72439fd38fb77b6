/** From cosines to probabilities, as CLIP (softmax) and SigLIP (sigmoid) read them. Pure. */

/** The labels share one: more for one of them is less for the others. */
export function softmax(cosines: number[], scale: number): number[] {
  const largest = Math.max(...cosines);
  const powers = cosines.map((cosine) => Math.exp(scale * (cosine - largest)));
  const sum = powers.reduce((total, one) => total + one, 0);
  return powers.map((one) => one / sum);
}

/** Each label is a question of its own: does it fit? */
export function sigmoid(cosine: number, scale: number, bias: number): number {
  return 1 / (1 + Math.exp(-(scale * cosine + bias)));
}

/** CLIP's loss of a batch whose matching pairs are on the diagonal: the mean of both cross-entropies, in nats. */
export function contrastiveLoss(matrix: number[][], scale: number): number {
  const rows = matrix.map((row, at) => -Math.log(softmax(row, scale)[at] ?? 1));
  const columns = matrix.map((_, at) => -Math.log(softmax(matrix.map((row) => row[at] ?? 0), scale)[at] ?? 1));
  return [...rows, ...columns].reduce((sum, one) => sum + one, 0) / (2 * matrix.length);
}

/** SigLIP's loss of the same batch, per picture. */
export function sigmoidLoss(matrix: number[][], scale: number, bias: number): number {
  let sum = 0;
  matrix.forEach((row, at) => row.forEach((cosine, other) => (sum -= Math.log(pairProbability(cosine, at === other, scale, bias)))));
  return sum / matrix.length;
}

function pairProbability(cosine: number, matches: boolean, scale: number, bias: number): number {
  const fits = sigmoid(cosine, scale, bias);
  return Math.max(matches ? fits : 1 - fits, 1e-300);
}

export function percent(share: number): string {
  const value = 100 * share;
  return value !== 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}
