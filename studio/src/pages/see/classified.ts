/** The answer of `classify`. */

import type { LiveJob } from "../../server/types";

export interface Classified {
  /** Cosines, a row for each picture, in the order of `labels`. */
  matrix: number[][];
  labels: string[];
  /** Ids of the pictures. */
  pictures: string[];
  scale: number;
  bias: number;
  /** `softmax` or `sigmoid`. */
  reads: string;
}

interface Fit {
  label: string;
  cosine: number;
}

/** The answer of a job; undefined until it is there. Pure. */
export function readClassified(job: LiveJob | undefined): Classified | undefined {
  const values = job?.result?.values;
  const rows = values?.pictures as { labels: Fit[] }[] | undefined;
  if (!job || !values || !rows) return undefined;
  const labels = values.labels as string[];
  return {
    labels,
    matrix: rows.map((row) => labels.map((label) => row.labels.find((fit) => fit.label === label)?.cosine ?? 0)),
    pictures: (job.request.pictures as string[]) ?? [],
    scale: Number(values.scale),
    bias: Number(values.bias ?? 0),
    reads: String(values.reads),
  };
}
