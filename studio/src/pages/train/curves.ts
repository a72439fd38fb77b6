/** Rows of a training's journal as curves. Pure. */

import type { Point, Series } from "../../parts/chart";
import type { LiveJob } from "../../server/types";

/** Columns that are no measure of the training. */
const APART = ["step", "seconds", "skipped", "event", "job", "time"];
const FIRST = ["loss", "elbo", "c_wass_loss", "c_loss", "g_loss"];

export interface Curve {
  name: string;
  series: Series[];
}

/** One curve for each measure; the held-out value, `test_loss`, beside that of training, `loss`. */
export function curvesOf(jobs: Pick<LiveJob, "rows">[]): Curve[] {
  const points = new Map<string, Point[]>();
  const rows = jobs.flatMap((job) => job.rows).sort((a, b) => (a.step ?? 0) - (b.step ?? 0));
  for (const { step, ...row } of rows) {
    for (const [name, value] of Object.entries(row)) {
      if (typeof value !== "number" || typeof step !== "number" || APART.includes(name)) continue;
      points.set(name, [...(points.get(name) ?? []), [step, value]]);
    }
  }
  const names = [...new Set([...points.keys()].map((name) => name.replace(/^test_/, "")))];
  return names.sort((a, b) => rank(a) - rank(b)).map((name) => ({ name: nameOf(name), series: seriesOf(name, points) }));
}

function seriesOf(name: string, points: Map<string, Point[]>): Series[] {
  const found: Series[] = [];
  for (const [key, label] of [[name, "training"], [`test_${name}`, "held out"]] as const) {
    const own = points.get(key);
    if (own) found.push({ name: label, points: own });
  }
  return found;
}

function rank(name: string): number {
  const at = FIRST.indexOf(name);
  return at < 0 ? FIRST.length : at;
}

const NAMES: Record<string, string> = {
  elbo: "Evidence lower bound",
  kl: "KL divergence",
  norm: "Norm of the gradients",
  rate: "Learning rate, as a share of its highest",
  c_loss: "Critic's loss",
  c_wass_loss: "Critic's gap (generated − real)",
  c_gp: "Gradient penalty",
  g_loss: "Generator's loss",
  gradient_norm: "Norm of the critic's gradients",
  gradient_norm_std: "Its spread",
};

export function nameOf(name: string): string {
  const words = name.replaceAll("_", " ");
  return NAMES[name] ?? words.charAt(0).toUpperCase() + words.slice(1);
}
